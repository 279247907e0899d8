"""Metal text -> C++ text: what the language has that C++ lacks is written in other words."""
