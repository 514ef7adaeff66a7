"""Mass, momentum and energy of many states at once: a service computes them for every frame that it sends."""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

from problems.compiled import compiled


@compiled()
def integrate(h, hu, hv, gravity, out):
    """Sums over the cells of each state [state y x]: h, hu, hv and the energy per area, in float64."""
    for state in range(h.shape[0]):
        mass, momentum_x, momentum_y, energy = 0.0, 0.0, 0.0, 0.0
        for j in range(h.shape[1]):
            for i in range(h.shape[2]):
                # a float64 times a float32 is a float64
                depth = 1.0 * h[state, j, i]
                along_x = 1.0 * hu[state, j, i]
                along_y = 1.0 * hv[state, j, i]
                mass += depth
                momentum_x += along_x
                momentum_y += along_y
                energy += (along_x * along_x + along_y * along_y) / depth + gravity * depth * depth
        out[state, 0] = mass
        out[state, 1] = momentum_x
        out[state, 2] = momentum_y
        out[state, 3] = 0.5 * energy
