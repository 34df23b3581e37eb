"""The kernels, a folder a backend and a launcher module an op; all launchers of an op have one signature."""
