/* Derivatives of a stack of fully connected networks: a client is one walk forward and backward through its network.

   REAL is float or double. c clients, n examples each; a layer has k inputs and m units: its weight is (m, k), what it
   says of the examples (n, m), all contiguous. Numbers that are none stay none. What a sum goes over, examples or
   inputs, and in which order, depends on no other client.

   The products are as a library's would be, for sizes of which one client's network fits into a core's cache. A library
   does more before it begins, and a weight's gradient is added to the weight here while it is in registers. Loads over
   two cache lines are slow: what is given is best aligned to one. */

#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#ifdef __AVX512F__
enum { BYTES = 64, REGISTERS = 4 };
#else
enum { BYTES = 32, REGISTERS = 2 };
#endif
/* As many numbers as a register holds, and the same anywhere in memory. */
typedef REAL lanes __attribute__((vector_size(BYTES)));
typedef REAL loose __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL half __attribute__((vector_size(BYTES / 2)));
typedef REAL quarter __attribute__((vector_size(BYTES / 4)));
/* A block of REGISTERS x UNITS sums fills the registers. CHUNK: inputs of so many units and examples fit into the
   innermost cache. */
enum { LANES = BYTES / sizeof(REAL), UNITS = 6, CHUNK = 4096 / sizeof(REAL) };
#define READ(place) (*(const loose *)(place))
#define WRITE(place) (*(loose *)(place))
/* For a number of times that is known here, without a loop: so what it counts through stays in registers. */
#define EACH(i, count) _Pragma("GCC unroll 8") for (int64_t i = 0; i < (count); i++)
/* What is read from memory once and used more often: a compiler may have it read again for each use, but a core can do
   fewer reads at once than products take. */
#ifdef __AVX__
#define KEEP(value) __asm__("" : "+v"(value))
#else
#define KEEP(value)
#endif
/* STRIP, whatever that is where this stands, for the m units from j on. */
#define STRIPS                         \
    for (; j <= m - UNITS; j += UNITS) \
        STRIP(UNITS)                   \
    for (; j <= m - 2; j += 2)         \
        STRIP(2)                       \
    for (; j < m; j++)                 \
        STRIP(1)
#define INLINE static inline __attribute__((always_inline))

/* Rows of k numbers, one after the other. */
typedef struct {
    const REAL *start;
    int64_t k;
} rows;

INLINE REAL total(lanes v)
{
    union { lanes all; half part[2]; } two = {v};
    union { half all; quarter part[2]; } four = {two.part[0] + two.part[1]};
    quarter rest = four.part[0] + four.part[1];
    REAL sum = 0;
    EACH(lane, LANES / 4) sum += rest[lane];
    return sum;
}

/* z <- (z, where `adds`, or bias) + x w^T over the inputs from `from` to `end`, for `examples` x `units`. */
INLINE void products(rows x, int64_t i, const REAL *w, const REAL *bias, REAL *z, int64_t m, int64_t from, int64_t end,
                     int64_t adds, const int examples, const int units)
{
    const REAL *place[REGISTERS];
    lanes sum[REGISTERS][UNITS];
    int64_t at = from;
    EACH(e, examples) place[e] = x.start + (i + e) * x.k;
    EACH(e, examples) EACH(j, units) sum[e][j] = (lanes){0};
    for (; at <= end - LANES; at += LANES) {
        lanes seen[REGISTERS];
        EACH(e, examples) seen[e] = READ(place[e] + at);
        EACH(j, units)
        {
            lanes weight = READ(w + j * x.k + at);
            KEEP(weight);
            EACH(e, examples) sum[e][j] += seen[e] * weight;
        }
    }
    EACH(e, examples) EACH(j, units)
    {
        REAL *to = z + e * m + j, rest = total(sum[e][j]);
        for (int64_t last = at; last < end; last++)
            rest += place[e][last] * w[j * x.k + last];
        *to = (adds ? *to : bias ? bias[j] : 0) + rest;
    }
}

/* z (n, m) <- (z, where `adds`, or bias) + x w^T. */
static void forward(rows x, const REAL *w, const REAL *bias, REAL *z, int64_t n, int64_t m, int64_t adds)
{
#define BLOCK(examples, units) \
    products(x, i, w + j * x.k, bias ? bias + j : 0, z + i * m + j, m, from, end, adds || from, examples, units)
#define STRIP(units)                               \
    {                                              \
        int64_t i = 0;                             \
        for (; i <= n - REGISTERS; i += REGISTERS) \
            BLOCK(REGISTERS, units);               \
        for (; i < n; i++)                         \
            BLOCK(1, units);                       \
    }
    for (int64_t from = 0; from < x.k; from += CHUNK) {
        int64_t j = 0, end = from + CHUNK < x.k ? from + CHUNK : x.k;
        STRIPS
    }
#undef STRIP
#undef BLOCK
}

/* What becomes of numbers v and their gradient g: keep * v + scale * inverse * g, with inverse 1 where it is not given.
   What is not kept is not read, so it may be no number. Where `gradient` is given, that becomes g. */
typedef struct {
    const REAL *v, *inverse;
    REAL *to, *gradient, keep, scale;
} change;

INLINE change from(change c, int64_t at)
{
    c.v += at;
    c.to += at;
    c.inverse += c.inverse ? at : 0;
    c.gradient += c.gradient ? at : 0;
    return c;
}

INLINE void apply(change c, int64_t at, REAL g)
{
    if (c.gradient)
        c.gradient[at] = g;
    REAL moved = c.scale * g * (c.inverse ? c.inverse[at] : 1);
    c.to[at] = c.keep ? c.keep * c.v[at] + moved : moved;
}

/* The same for sums over the rows of x, each times its coefficient for a unit: those are `across` apart from row to row
   and `along` from unit to unit. `registers` x `units` at once. What they are applied to is asked for before and there
   when they are done. */
INLINE void sums(rows x, int64_t count, int64_t at, const REAL *coefficient, int64_t across, int64_t along, change c,
                 const int registers, const int units)
{
    lanes sum[UNITS][REGISTERS];
    EACH(j, units) EACH(r, registers)
    {
        sum[j][r] = (lanes){0};
        if (c.inverse)
            __builtin_prefetch(c.inverse + j * x.k + at + r * LANES);
        if (c.keep)
            __builtin_prefetch(c.v + j * x.k + at + r * LANES);
    }
    for (int64_t i = 0; i < count; i++) {
        const REAL *place = x.start + i * x.k + at;
        lanes seen[REGISTERS];
        EACH(r, registers) seen[r] = READ(place + r * LANES);
        EACH(j, units)
        {
            REAL factor = coefficient[i * across + j * along];
            EACH(r, registers) sum[j][r] += seen[r] * factor;
        }
    }
    EACH(j, units) EACH(r, registers)
    {
        int64_t here = j * x.k + at + r * LANES;
        lanes moved = c.scale * sum[j][r];
        if (c.gradient)
            WRITE(c.gradient + here) = sum[j][r];
        if (c.inverse)
            moved *= READ(c.inverse + here);
        if (c.keep)
            moved += c.keep * READ(c.v + here);
        WRITE(c.to + here) = moved;
    }
}

INLINE void all_sums(rows x, int64_t count, const REAL *coefficient, int64_t across, int64_t along, int64_t m, change c)
{
#define STRIP(units)                                                                                          \
    {                                                                                                         \
        const REAL *own = coefficient + j * along;                                                            \
        change to = from(c, j * x.k);                                                                         \
        int64_t at = 0;                                                                                       \
        for (; at <= x.k - REGISTERS * LANES; at += REGISTERS * LANES)                                        \
            sums(x, count, at, own, across, along, to, REGISTERS, units);                                     \
        for (; at <= x.k - LANES; at += LANES)                                                                \
            sums(x, count, at, own, across, along, to, 1, units);                                             \
        for (; at < x.k; at++)                                                                                \
            EACH(unit, units)                                                                                 \
            {                                                                                                 \
                REAL sum = 0;                                                                                 \
                for (int64_t i = 0; i < count; i++)                                                           \
                    sum += x.start[i * x.k + at] * own[i * across + unit * along];                            \
                apply(to, unit * x.k + at, sum);                                                              \
            }                                                                                                 \
    }
    int64_t j = 0;
    STRIPS
#undef STRIP
}

/* A weight's gradient is delta^T x, for delta (n, m). */
static void weights(rows x, const REAL *delta, int64_t n, int64_t m, change c)
{
    all_sums(x, n, delta, m, 1, m, c);
}

/* A bias' gradient is delta's sum over the examples. */
static void biases(const REAL *delta, int64_t n, int64_t m, change c)
{
    const REAL one = 1;
    all_sums((rows){delta, m}, n, &one, 0, 0, 1, c);
}

/* to (n, k) <- keep * to + delta w, for w (m, k). */
static void before(const REAL *delta, const REAL *w, REAL *to, int64_t n, int64_t k, int64_t m, REAL keep)
{
    all_sums((rows){w, k}, m, delta, 1, m, n, (change){.v = to, .to = to, .keep = keep, .scale = 1});
}

/* z <- max(z, 0). */
static void relu(REAL *z, int64_t count)
{
    for (int64_t at = 0; at < count; at++)
        z[at] = z[at] < 0 ? 0 : z[at];
}

/* z <- given where the ReLU that gave `hidden` is on, else 0; all three may be the same place. */
static void where_on(REAL *z, const REAL *given, const REAL *hidden, int64_t count)
{
    for (int64_t at = 0; at < count; at++)
        z[at] = hidden[at] > 0 ? given[at] : 0;
}

/* Logits z (n, m), labels (n), each example's share of the mean (n) or none for 1 / n: the mean cross entropy, and z
   becomes its derivative with respect to z. Where `moved` (n, m) is given, along which z moves, that becomes how the
   derivative does. */
static REAL cross_entropy(REAL *restrict z, const int64_t *restrict label, const REAL *restrict share,
                          REAL *restrict moved, int64_t n, int64_t m)
{
    REAL mean = 0;
    for (int64_t i = 0; i < n; i++, z += m) {
        REAL part = share ? share[i] : (REAL)1 / n, largest = z[0], sum = 0;
        for (int64_t unit = 1; unit < m; unit++)
            largest = z[unit] > largest ? z[unit] : largest;
        REAL picked = z[label[i]] - largest;
        for (int64_t unit = 0; unit < m; unit++) {
            z[unit] = exp(z[unit] - largest);
            sum += z[unit];
        }
        mean += (log(sum) - picked) * part;
        for (int64_t unit = 0; unit < m; unit++)
            z[unit] = z[unit] / sum;
        if (moved) {
            REAL *own = moved + i * m, expected = 0;
            for (int64_t unit = 0; unit < m; unit++)
                expected += z[unit] * own[unit];
            for (int64_t unit = 0; unit < m; unit++)
                own[unit] = z[unit] * (own[unit] - expected) * part;
        }
        for (int64_t unit = 0; unit < m; unit++)
            z[unit] *= part;
        z[label[i]] -= part;
    }
    return mean;
}

/* The same for half the squared distance to a target (n) of each unit. */
static REAL half_squares(REAL *restrict z, const REAL *restrict target, const REAL *restrict share, REAL *restrict moved,
                         int64_t n, int64_t m)
{
    REAL mean = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = i * m; at < (i + 1) * m; at++) {
            REAL part = share ? share[i] : (REAL)1 / n, rest = z[at] - target[i];
            mean += rest * rest * part / 2;
            z[at] = rest * part;
            if (moved)
                moved[at] *= part;
        }
    return mean;
}

/* Networks of `depth` layers for c clients. In a client's vector a layer's weight and bias (-1 for none) begin at, and
   the layer has as many units as, `layers` (depth, 3) says. A client's examples are the rows `number` (c, n) of x, or
   without that its own n of x (c * n, k). Targets (c, n) are labels or, for half the squared error, REAL; shares of the
   mean (c, n) or none are as above. `room` is to work in: for each example its k numbers, twice the units of all layers,
   and twice those of the largest. */
typedef struct {
    const int64_t *layers;
    int64_t depth, c, n, k, has_labels;
    const REAL *x;
    const int64_t *number;
    const void *target;
    const REAL *share;
    REAL *room;
} network;

/* A client's examples, side by side at the start of the room: they are read again and again, from wherever they lie. */
static rows examples(const network *net, int64_t client)
{
    int64_t k = net->k, first = client * net->n;
    for (int64_t i = 0; i < net->n; i++)
        memcpy(net->room + i * k, net->x + k * (net->number ? net->number[first + i] : first + i), k * sizeof(REAL));
    return (rows){net->room, k};
}

static const REAL *bias(const REAL *v, const int64_t *layer) { return layer[1] < 0 ? 0 : v + layer[1]; }

static REAL loss(const network *net, int64_t client, REAL *z, REAL *moved)
{
    int64_t n = net->n, first = client * n, m = net->layers[3 * net->depth - 1];
    const REAL *share = net->share ? net->share + first : 0;
    return net->has_labels ? cross_entropy(z, (const int64_t *)net->target + first, share, moved, n, m)
                           : half_squares(z, (const REAL *)net->target + first, share, moved, n, m);
}

/* to <- keep * v + scale * gradient of the mean loss at v, for one client; its loss. */
static REAL descend(const network *net, int64_t client, change all)
{
    const int64_t n = net->n, *first = net->layers, *last = first + 3 * (net->depth - 1);
    const rows inputs = examples(net, client);
    rows seen = inputs;
    REAL *z = net->room + n * net->k;
    for (const int64_t *layer = first;; z += n * layer[2], layer += 3) {
        forward(seen, all.v + layer[0], bias(all.v, layer), z, n, layer[2], 0);
        if (layer == last)
            break;
        relu(z, n * layer[2]);
        seen = (rows){z, layer[2]};
    }
    REAL *spare = z + n * last[2], found = loss(net, client, z, 0);
    for (const int64_t *layer = last;; layer -= 3) {
        int64_t m = layer[2], k = layer == first ? net->k : layer[-1];
        REAL *hidden = z - n * k;
        if (layer > first) /* with the weight as it was */
            before(z, all.v + layer[0], spare, n, k, m, 0);
        weights(layer == first ? inputs : (rows){hidden, k}, z, n, m, from(all, layer[0]));
        if (layer[1] >= 0)
            biases(z, n, m, from(all, layer[1]));
        if (layer == first)
            return found;
        where_on(hidden, spare, hidden, n * k);
        z = hidden;
    }
}

/* The same for all clients, and for one mini-batch after the other, with losses (c) added up: from v to `to`, and then in
   `to`'s place. A later one may be of fewer clients, the first of them. The gradient is multiplied by `inverse` where
   that is given; that of the first mini-batch is written to `gradient` where that is. v, inverse, to and gradient are c
   vectors, so far from one to the next. */
void steps(const network *nets, int64_t count, const REAL *v, const REAL *inverse, REAL *to, REAL *gradient, REAL *losses,
           int64_t v_stride, int64_t inverse_stride, int64_t to_stride, int64_t gradient_stride, double keep, double scale)
{
    for (int64_t client = 0; client < nets->c; client++) {
        change all = {v + client * v_stride, inverse, to + client * to_stride, gradient, keep, scale};
        for (const network *net = nets; net < nets + count && client < net->c; net++) {
            losses[client] += descend(net, client, all);
            all.v = all.to;
            all.gradient = 0;
        }
        inverse += inverse_stride;
        gradient += gradient_stride;
    }
}

/* to <- the derivative of the gradient at v along `way`, one vector for all clients: what the Hessian makes of it. */
void along(const network *net, const REAL *v, const REAL *way, REAL *to, int64_t v_stride, int64_t to_stride)
{
    const int64_t n = net->n, *first = net->layers, *last = first + 3 * (net->depth - 1);
    int64_t units = last[2], widest = last[2];
    for (const int64_t *layer = first; layer < last; layer += 3) {
        units += layer[2];
        widest = layer[2] > widest ? layer[2] : widest;
    }
    const int64_t beside = n * (units + widest); /* from what a number is to how it moves */
    for (int64_t client = 0; client < net->c; client++, v += v_stride, to += to_stride) {
        change all = {.v = to, .to = to, .scale = 1}, more = all;
        more.keep = 1;
        const rows inputs = examples(net, client);
        rows seen = inputs;
        REAL *z = net->room + n * net->k;
        for (const int64_t *layer = first;; z += n * layer[2], layer += 3) {
            int64_t m = layer[2];
            forward(seen, v + layer[0], bias(v, layer), z, n, m, 0);
            forward(seen, way + layer[0], bias(way, layer), z + beside, n, m, 0);
            if (layer > first)
                forward((rows){z - n * seen.k + beside, seen.k}, v + layer[0], 0, z + beside, n, m, 1);
            if (layer == last)
                break;
            relu(z, n * m);
            where_on(z + beside, z + beside, z, n * m);
            seen = (rows){z, m};
        }
        REAL *spare = z + n * last[2];
        loss(net, client, z, z + beside);
        for (const int64_t *layer = last;; layer -= 3) {
            int64_t m = layer[2], k = layer == first ? net->k : layer[-1];
            REAL *hidden = z - n * k;
            weights(layer == first ? inputs : (rows){hidden, k}, z + beside, n, m, from(all, layer[0]));
            if (layer[1] >= 0)
                biases(z + beside, n, m, from(all, layer[1]));
            if (layer == first)
                break;
            weights((rows){hidden + beside, k}, z, n, m, from(more, layer[0]));
            before(z, v + layer[0], spare, n, k, m, 0);
            before(z + beside, v + layer[0], spare + beside, n, k, m, 0);
            before(z, way + layer[0], spare + beside, n, k, m, 1);
            where_on(hidden + beside, spare + beside, hidden, n * k);
            where_on(hidden, spare, hidden, n * k);
            z = hidden;
        }
    }
}
