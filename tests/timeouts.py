"""How long tests wait for what must come."""

# The longest wait in a test, whatever for. It only ends a test that hangs: nothing takes a second on a free machine, and one that is
# busy, slow, or stands still for some seconds must not fail a test. A run of many clients gets a multiple of it.
TIMEOUT_S = 60.0
