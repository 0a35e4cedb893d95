"""`trd-ray sweep`: the trials of `trd_ray/sweep`, run by Ray Tune as processes of `trd-ray train`."""
