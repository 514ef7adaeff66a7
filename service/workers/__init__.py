"""Who computes: processes and threads behind one seam, and the shared memory through which they are fed."""
