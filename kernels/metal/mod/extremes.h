// extremes.h: captured_extremes.h for Metal.
#pragma once
#include "bounds.h"
#include "../../template/captured_extremes.h"
