"""Settings of the programs: gin files and bindings, checked by name and type before use."""
