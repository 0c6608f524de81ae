"""Blocks of transitions as instructions for LLVM: of HMC, and of replica exchange."""

from __future__ import annotations

from llvmlite import ir

from bnn_utils.gradients.formulas import finite
from bnn_utils.gradients.program import Assembly, Program, Rows
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I8, I64, Value


def assemble(program: Program) -> str:
    """The text of a module of LLVM: `transitions` and `exchanges`, and what `Assembly` has."""
    return str(Blocks(program).module)


class Blocks(Assembly):
    """A module in the making, with `transitions` and `exchanges`."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._transitions()
        self._exchanges()

    def _transitions(self) -> None:
        """T transitions of HMC of lanes at theta, log_prob and grad, which move.

        Of each it takes what was drawn, normal numbers ``(T, C, D)``, step sizes and uniform numbers ``(T, C)``, and
        how many steps to make, ``(T,)``. It records, in rows of a given length, theta ``(C, length, D)``, and
        ``(C, length)`` log probability, energies at the two ends of the trajectory, and whether its end was accepted,
        as bytes.
        """
        kinds = [I64, I64, *10 * [self.pointer], I8.as_pointer(), I64.as_pointer(), *2 * [self.pointer], I64]
        kinds += [self.pointer, self.scalar]
        function, b = self._entry("transitions", kinds)
        first, last, num_lanes, num, length, theta, log_prob, grad, noise, sizes, uniforms, *args = function.args
        thetas, log_probs, starts, ends, accepts, num_steps, precision, inv_mass, is_dense, factor, *args = args
        log_normalizer, *data = args
        v = Vectors(b, self.scalar, self.program.lanes)
        here, slope = self._tile(b), self._tile(b)  # where the lanes are
        there, p, slope_there, grad_likelihood = (self._tile(b) for _ in range(4))
        of_trajectory = there, p, slope_there, grad_likelihood, v.constant(1.0)
        now = self.variable(b, v.type)
        with self.loop(b, first, last) as tile:
            rows = self._rows(b, tile, num_lanes)
            of_tile = self._data_of(b, data, tile)
            self._read(b, theta, rows, here)
            self._read(b, grad, rows, slope)
            b.store(self._get(b, log_prob, rows), now)
            with self.loop(b, I64(0), num) as t:
                drawn, recorded = self._rows_drawn(b, rows, t, num_lanes), self._rows_recorded(b, rows, t, length)
                self._copy(b, (here, there), (slope, slope_there))
                self._draw_momentum(b, v, p, noise, drawn, factor)
                size, steps = self._get(b, sizes, drawn), b.load(self.at(b, num_steps, t))
                start = v.sub(self._kinetic(b, v, p, inv_mass, is_dense), b.load(now))
                found = b.call(
                    self.trajectory,
                    [*of_trajectory, size, ir.IntType(1)(0), steps, precision, inv_mass, is_dense, *of_tile],
                )
                found = v.add(found, self._log_prior(b, v, there, precision, log_normalizer))
                end = v.sub(self._kinetic(b, v, p, inv_mass, is_dense), found)
                is_accept = self._is_accepted(b, v, start, end, self._get(b, uniforms, drawn))
                b.store(v.select(is_accept, found, b.load(now)), now)
                self._copy(b, (there, here), (slope_there, slope), where=is_accept)
                self._write(b, here, thetas, recorded)
                for value, array in ((b.load(now), log_probs), (start, starts), (end, ends)):
                    self._put(b, value, array, recorded)
                self._put(b, b.zext(is_accept, ir.VectorType(I8, v.width)), accepts, recorded)
            self._write(b, here, theta, rows)
            self._write(b, slope, grad, rows)
            self._put(b, b.load(now), log_prob, rows)
        b.ret_void()

    def _exchanges(self) -> None:
        """T transitions of replica exchange of chains with K lanes each.

        Lanes' theta ``(C K, D)``, log likelihoods ``(C K,)`` with their gradients, and numbers of replicas ``(C K,)``
        move. Tiles from ``first`` to ``last`` are to hold whole chains. Of each transition it takes what was drawn,
        uniform numbers for swaps ``(T, C, K - 1)``, normal numbers ``(T, C K, D)``, step sizes and uniform numbers
        ``(T, C K)``, and records, in rows of a given length, theta of the coldest lanes ``(C, length, D)``, and
        ``(C, length, K)`` log probability, log likelihood, energies at the two ends of the trajectory, whether its end
        was accepted, as bytes, and replicas.
        """
        kinds = [*4 * [I64], *3 * [self.pointer], I64.as_pointer(), *6 * [self.pointer]]
        kinds += [*5 * [self.pointer], I8.as_pointer(), I64.as_pointer(), I64, *2 * [self.pointer], I64]
        kinds += [self.pointer, self.scalar]
        function, b = self._entry("exchanges", kinds)
        first, last, num_lanes, num, length, done, temperatures, *args = function.args
        theta, likelihood, grad, replica, *args = args
        swaps, noise, sizes, uniforms, betas, gaps, thetas, log_probs, likelihoods, starts, ends, accepts, *args = args
        replicas, num_steps, precision, inv_mass, is_dense, factor, log_normalizer, *data = args
        v, dim = Vectors(b, self.scalar, self.program.lanes), self.program.dim
        here, grad_here, there, p, slope, grad_there = (self._tile(b) for _ in range(6))
        lanes = [b.mul(edge, I64(self.program.lanes)) for edge in (first, last)]
        lanes[1] = b.select(b.icmp_signed("<", lanes[1], num_lanes), lanes[1], num_lanes)
        chains = [b.sdiv(edge, temperatures) for edge in lanes]
        num_chains, pairs = b.sdiv(num_lanes, temperatures), b.sub(temperatures, I64(1))
        with self.loop(b, I64(0), num) as t:
            parity = b.and_(b.add(done, t), I64(1))
            with self.loop(b, *chains) as chain, self.loop(b, parity, pairs, 2) as pair:
                row = b.add(b.mul(chain, temperatures), pair)
                pair_drawn = b.add(b.mul(b.add(b.mul(t, num_chains), chain), pairs), pair)
                gap, uniform = b.load(self.at(b, gaps, pair)), b.load(self.at(b, swaps, pair_drawn))
                with b.if_then(self._is_swapped(b, self.at(b, likelihood, row), gap, uniform)):
                    for array, size in ((theta, dim), (grad, dim), (likelihood, 1), (replica, 1)):
                        self._swap(b, array, row, size)
            with self.loop(b, first, last) as tile:
                rows = self._rows(b, tile, num_lanes)
                drawn = self._rows_drawn(b, rows, t, num_lanes)

                def recorded_at(row: Value, t: Value = t) -> Value:
                    """Row c K + k to (c length + t) K + k."""
                    chain = b.sdiv(row, temperatures)
                    return b.add(row, b.mul(b.add(b.mul(chain, b.sub(length, I64(1))), t), temperatures))

                recorded = rows.at(recorded_at)
                self._read(b, theta, rows, here)
                self._read(b, grad, rows, grad_here)
                log_likelihood, beta = self._get(b, likelihood, rows), self._get(b, betas, rows)
                self._copy(b, (here, there))
                with self._parameters(b) as k:
                    of_prior = v.mul(v.splat(b.load(self.at(b, precision, k))), b.load(self.at(b, here, k)))
                    of_likelihood = b.load(self.at(b, grad_here, k))
                    b.store(v.fma(beta, of_likelihood, v.neg(of_prior)), self.at(b, slope, k))
                self._draw_momentum(b, v, p, noise, drawn, factor)
                now = v.fma(beta, log_likelihood, self._log_prior(b, v, here, precision, log_normalizer))
                start = v.sub(self._kinetic(b, v, p, inv_mass, is_dense), now)
                size, of_tile = self._get(b, sizes, drawn), self._data_of(b, data, tile)
                of_trajectory = there, p, slope, grad_there, beta, size, ir.IntType(1)(1)
                found = b.call(self.trajectory, [*of_trajectory, num_steps, precision, inv_mass, is_dense, *of_tile])
                log_prob = v.fma(beta, found, self._log_prior(b, v, there, precision, log_normalizer))
                end = v.sub(self._kinetic(b, v, p, inv_mass, is_dense), log_prob)
                is_accept = self._is_accepted(b, v, start, end, self._get(b, uniforms, drawn))
                self._copy(b, (there, here), (grad_there, grad_here), where=is_accept)
                self._write(b, here, theta, rows)
                self._write(b, grad_here, grad, rows)
                log_likelihood, log_prob = (
                    v.select(is_accept, new, old) for new, old in ((found, log_likelihood), (log_prob, now))
                )
                self._put(b, log_likelihood, likelihood, rows)
                for value, array in (
                    (log_prob, log_probs),
                    (log_likelihood, likelihoods),
                    (start, starts),
                    (end, ends),
                    (b.zext(is_accept, ir.VectorType(I8, v.width)), accepts),
                ):
                    self._put(b, value, array, recorded)
            with self.loop(b, *chains) as chain:
                hottest, place = b.mul(chain, temperatures), b.add(b.mul(chain, length), t)
                with self.loop(b, I64(0), temperatures) as k:
                    value = b.load(self.at(b, replica, b.add(hottest, k)))
                    b.store(value, self.at(b, replicas, b.add(b.mul(place, temperatures), k)))
                cold = b.add(hottest, pairs)
                with self._parameters(b) as k:
                    value = b.load(self.at(b, theta, b.add(b.mul(cold, I64(dim)), k)))
                    b.store(value, self.at(b, thetas, b.add(b.mul(place, I64(dim)), k)))
        b.ret_void()

    # --- what both do ------------------------------------------------------------------------------------------------

    def _rows_drawn(self, b: ir.IRBuilder, rows: Rows, t: Value, num_lanes: Value) -> Rows:
        """In arrays ``(T, C, ...)`` at t."""
        return rows.at(lambda row: b.add(b.mul(t, num_lanes), row))

    def _rows_recorded(self, b: ir.IRBuilder, rows: Rows, t: Value, length: Value) -> Rows:
        """In arrays ``(C, length, ...)`` at t."""
        return rows.at(lambda row: b.add(b.mul(row, length), t))

    def _draw_momentum(self, b: ir.IRBuilder, v: Vectors, p: Value, noise: Value, rows: Rows, factor: Value) -> None:
        """Of rows of normal numbers, by the factor of a diagonal mass."""
        self._read(b, noise, rows, p)
        with self._parameters(b) as k:
            place = self.at(b, p, k)
            b.store(v.mul(v.splat(b.load(self.at(b, factor, k))), b.load(place)), place)

    def _kinetic(self, b: ir.IRBuilder, v: Vectors, p: Value, inv_mass: Value, is_dense: Value) -> Value:
        velocity, total = self._tile(b), self.variable(b, v.type)
        b.call(self.velocity, [p, velocity, inv_mass, is_dense])
        b.store(v.constant(0.0), total)
        with self._parameters(b) as k:
            b.store(v.fma(b.load(self.at(b, velocity, k)), b.load(self.at(b, p, k)), b.load(total)), total)
        return v.mul(v.constant(0.5), b.load(total))

    def _is_accepted(self, b: ir.IRBuilder, v: Vectors, start: Value, end: Value, uniform: Value) -> Value:
        """What is infinite or not a number is never accepted, and 0 is none of the logarithms that may win."""
        ratio = v.sub(start, end)
        return b.and_(finite(v, ratio), v.less(v.log(uniform), ratio))

    def _copy(self, b: ir.IRBuilder, *pairs: tuple[Value, Value], where: Value | None = None) -> None:
        """Tiles to other tiles; of some lanes only."""
        with self._parameters(b) as k:
            for source, target in pairs:
                value, place = b.load(self.at(b, source, k)), self.at(b, target, k)
                b.store(value if where is None else b.select(where, value, b.load(place)), place)

    def _is_swapped(self, b: ir.IRBuilder, likelihood: Value, gap: Value, uniform: Value) -> Value:
        """Whether a lane and the next one trade places, whose log likelihoods lie side by side."""
        v = Vectors(b, self.scalar, 1)
        low, high = (b.load(self.at(b, likelihood, I64(k))) for k in (0, 1))
        ratio = v.mul(v.splat(gap), v.splat(b.fsub(high, low)))
        return b.extract_element(v.less(v.log(v.splat(uniform)), ratio), I64(0))

    def _swap(self, b: ir.IRBuilder, array: Value, row: Value, size: int) -> None:
        """A row and the next one, of so many numbers each."""
        with self.loop(b, I64(0), I64(size)) as k:
            low = self.at(b, array, b.add(b.mul(row, I64(size)), k))
            high = self.at(b, low, I64(size))
            below, above = b.load(low), b.load(high)
            b.store(above, low), b.store(below, high)
