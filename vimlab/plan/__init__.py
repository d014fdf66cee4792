"""Will a run fit, and how long will it take: the real step compiled for a topology that is not there, and the arithmetic of it."""
