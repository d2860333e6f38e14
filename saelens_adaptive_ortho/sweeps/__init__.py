"""Sweeps: many SAEs, as units of work that any number of processes and machines do together.

* :mod:`.axes`: the axes of a config and the points of their product
* :mod:`.packing`: points become units; each is a comparison in a folder of its own
* :mod:`.folder`: what a sweep's folder holds, and what is whole
* :mod:`.attempts`: who works on a unit, with a heartbeat; one process at a time
* :mod:`.working`: one unit, done in this process
* :mod:`.copying`: the copy of finished units at a URL, from which they come back
* :mod:`.scheduling`: hands units to a driver until all are done
* :mod:`.drivers`: where units run
"""
