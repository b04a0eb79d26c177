"""The machine beneath a program: files, locks, signals, progress, profiles, device meshes."""
