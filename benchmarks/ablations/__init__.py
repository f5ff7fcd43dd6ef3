"""What settings do: sweeps over labelled images and painted cases, with tables and plots."""
