// extremes.h: captured_extremes.h for CUDA.
#pragma once
#include "bounds.h"
#include "../../template/captured_extremes.h"
