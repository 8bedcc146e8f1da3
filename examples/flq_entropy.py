"""The entropy coder of fl-quant streams, written from docs/format.md; used by decode_flq.py."""
import struct

PRIOR = [16384, 4096, 4096, 1536, 1536, 768, 768, 768, 768, 512, 512, 256, 256, 208, 208, 96]
COLUMN_STEPS = [1, 2, 5, 9, 20]
NEAR_STEPS = [1, 6, 10, 15, 22, 32, 46, 66, 100, 160, 280]
SIGN_STEPS = [1, 4, 8, 14, 26]
NEXT_STATE = [(0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)]
CLASSES = [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 3)]


class Lanes:
    """rANS states that share one sequence of 16-bit words."""

    def __init__(self, payload, lanes):
        heads = payload[: 4 * lanes].ljust(4 * lanes, b"\0") if len(payload) < 4 * lanes else payload[: 4 * lanes]
        self.states = list(struct.unpack(f"<{lanes}I", heads))
        words = payload[4 * lanes :]
        self.words = iter(struct.unpack(f"<{len(words) // 2}H", words[: len(words) // 2 * 2]))

    def slot(self, lane):
        return self.states[lane] & 0x7FFF

    def advance(self, lane, start, frequency):
        state = self.states[lane]
        state = frequency * (state >> 15) + (state & 0x7FFF) - start
        if state < 1 << 16:
            state = state << 16 | next(self.words, 0)
        self.states[lane] = state

    def plain(self, lane, bits):
        frequency = 1 << (15 - bits)
        value = self.slot(lane) // frequency
        self.advance(lane, value * frequency, frequency)
        return value


class Model:
    """An adaptive model: the cumulative frequency before each of sixteen symbols."""

    def __init__(self, last_shift):
        self.last_shift = last_shift
        self.bounds = [sum(PRIOR[:i]) for i in range(16)]
        self.seen = 0

    def decode(self, lanes, lane):
        slot = lanes.slot(lane)
        symbol = sum(bound <= slot for bound in self.bounds) - 1
        end = self.bounds[symbol + 1] if symbol < 15 else 32768
        lanes.advance(lane, self.bounds[symbol], end - self.bounds[symbol])
        return symbol

    def update(self, symbol):
        shift = min(3 + self.seen // 8, self.last_shift)
        self.seen += 1
        for i in range(16):
            target = i if i <= symbol else 32752 + i
            self.bounds[i] += (target - self.bounds[i]) >> shift


def magnitude_of(symbol, lanes, lane):
    kind = (symbol + 1) // 2
    if kind == 0 or kind > 7:
        return 0
    if kind < 7:
        first, bits = CLASSES[kind - 1]
        return first + (lanes.plain(lane, bits) if bits else 0)
    bits, rest = min(lanes.plain(lane, 5), 20), 1
    while bits > 0:
        piece = min(bits, 14)
        bits -= piece
        rest = rest << piece | lanes.plain(lane, piece)
    return min(rest + 17, 1 << 20)


def class_of(value, steps):
    return sum(step <= value for step in steps)


def decode_levels(payload, layout, count, trellis):
    """The decoded integers; under the trellis their levels (multiples of the step)."""
    cols, stride, lane_count, last_shift = layout
    lanes, models, means = Lanes(payload, lane_count), {}, [0] * cols
    out = [0] * count
    for first in range(0, count, cols * lane_count):
        in_group = min(cols * lane_count, count - first)
        rows = [[0] * cols for _ in range(lane_count)]
        states = [0] * lane_count
        active = -(-in_group // cols)
        for wave in range(cols + active - 1):
            coded = []
            for lane in range(active):
                column = wave - lane
                if not 0 <= column < cols or lane * cols + column >= in_group:
                    continue
                row = rows[lane]

                def at(place):
                    return row[place] if 0 <= place < column else 0

                left, left2 = at(column - 1), at(column - 2)
                far, far_next = (at(column - stride), at(column + 1 - stride)) if stride else (0, 0)
                near = 5 * (abs(left) + abs(far)) + 2 * (abs(left2) + abs(far_next))
                sign = 5 * (left + far) + 2 * (left2 + far_next)
                quantizer = states[lane] & 1 if trellis else 0
                key = (
                    quantizer,
                    class_of(means[column], COLUMN_STEPS),
                    class_of(near, NEAR_STEPS),
                    class_of(abs(sign), SIGN_STEPS),
                )
                model = models.setdefault(key, Model(last_shift))
                symbol = model.decode(lanes, lane)
                coded.append((model, symbol))
                magnitude = magnitude_of(symbol, lanes, lane)
                coded_negative = symbol > 0 and symbol % 2 == 0
                index = -magnitude if coded_negative != (sign < 0) else magnitude
                row[column] = max(-40, min(40, index))
                means[column] += 4 * abs(row[column]) - means[column] // 4
                states[lane] = NEXT_STATE[states[lane]][index & 1]
                signum = (index > 0) - (index < 0)
                out[first + lane * cols + column] = 2 * index - signum * quantizer if trellis else index
            for model, symbol in coded:
                model.update(symbol)
    return out
