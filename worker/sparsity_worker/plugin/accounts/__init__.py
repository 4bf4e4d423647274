"""What requests attended: booked on the device and the host, and packed for the way out of the scheduler."""
