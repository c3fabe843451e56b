"""What keeps a service going: its agreed level, planned and verified."""
