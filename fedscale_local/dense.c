/* What lies between the matrix products of a stack of fully connected networks, each in one walk over memory.

   REAL is float or double. c clients, n examples each, m units: an activation is (c, n, m) and contiguous; a bias and
   the gradient of one are (c, m) with `stride` numbers from one client to the next. Numbers that are none stay none.
   Sums go over the examples in their order.

   Where the network is one linear layer, its products are here as well: they are too small for what a library does
   before it begins. */

#include <stdint.h>
#include <tgmath.h>

/* As many numbers as a register holds, and the same anywhere in memory. */
typedef REAL lanes __attribute__((vector_size(32)));
typedef REAL loose __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
enum { LANES = 32 / sizeof(REAL), ROWS = 2, UNITS = 5 };
#define READ(place) (*(const loose *)(place))
#define WRITE(place) (*(loose *)(place))
/* For a number of times that is known here, without a loop: so what it counts through stays in registers. */
#define EACH(i, count) _Pragma("GCC unroll 8") for (int64_t i = 0; i < (count); i++)
#define INLINE static inline __attribute__((always_inline))

/* z <- z + bias, and where is_hidden max(that, 0). */
void affine(REAL *restrict z, const REAL *restrict bias, int64_t stride, int64_t c, int64_t n, int64_t m,
            int64_t is_hidden)
{
    for (int64_t client = 0; client < c; client++)
        for (int64_t example = 0; example < n; example++) {
            REAL *row = z + (client * n + example) * m;
            const REAL *add = bias + client * stride;
            if (is_hidden)
                for (int64_t unit = 0; unit < m; unit++) {
                    REAL sum = row[unit] + add[unit];
                    row[unit] = sum < 0 ? 0 : sum;
                }
            else
                for (int64_t unit = 0; unit < m; unit++)
                    row[unit] += add[unit];
        }
}

/* delta <- delta where hidden > 0, else 0 (as it is where hidden is not given); to <- keep * bias + scale * its sum over
   the examples, which may be the same place. What is not kept is not read. The sum is multiplied by `inverse`, entry by
   entry, where that is given. */
void backward(REAL *restrict delta, const REAL *restrict hidden, const REAL *bias, const REAL *inverse, REAL *to,
              int64_t stride, int64_t inverse_stride, int64_t to_stride, int64_t c, int64_t n, int64_t m, double keep,
              double scale)
{
    REAL kept = keep, scaled = scale;
    for (int64_t client = 0; client < c; client++, bias += stride, to += to_stride) {
        const REAL *factor = inverse ? inverse + client * inverse_stride : 0;
        for (int64_t unit = 0; unit < m; unit++)
            to[unit] = kept ? kept * bias[unit] : 0;
        for (int64_t example = 0; example < n; example++) {
            int64_t start = (client * n + example) * m;
            if (hidden)
                for (int64_t unit = 0; unit < m; unit++)
                    delta[start + unit] = hidden[start + unit] > 0 ? delta[start + unit] : 0;
            if (factor)
                for (int64_t unit = 0; unit < m; unit++)
                    to[unit] += scaled * factor[unit] * delta[start + unit];
            else
                for (int64_t unit = 0; unit < m; unit++)
                    to[unit] += scaled * delta[start + unit];
        }
    }
}

/* Logits z (c, n, m), labels (c, n), each example's share of the mean (c, n) or none for 1 / n: the mean cross entropy
   loss (c), and z becomes its derivative with respect to z. */
void cross_entropy(REAL *restrict z, const int64_t *restrict label, const REAL *restrict share, REAL *restrict loss,
                   int64_t c, int64_t n, int64_t m)
{
    for (int64_t client = 0; client < c; client++) {
        REAL mean = 0;
        for (int64_t example = client * n; example < (client + 1) * n; example++) {
            REAL *row = z + example * m, part = share ? share[example] : (REAL)1 / n;
            REAL largest = row[0], total = 0;
            for (int64_t unit = 1; unit < m; unit++)
                largest = row[unit] > largest ? row[unit] : largest;
            REAL picked = row[label[example]] - largest;
            for (int64_t unit = 0; unit < m; unit++) {
                row[unit] = exp(row[unit] - largest);
                total += row[unit];
            }
            mean += (log(total) - picked) * part;
            for (int64_t unit = 0; unit < m; unit++)
                row[unit] = row[unit] / total * part;
            row[label[example]] -= part;
        }
        loss[client] = mean;
    }
}

/* z (rows, m) <- x w^T: `rows` rows of x, wherever they are, with `units` rows of w (units, k). */
INLINE void products(const REAL *const *x, const REAL *w, REAL *z, int64_t k, int64_t m, const int rows,
                     const int units)
{
    lanes sum[ROWS][UNITS];
    int64_t at = 0;
    EACH(i, rows) EACH(j, units) sum[i][j] = (lanes){0};
    for (; at <= k - LANES; at += LANES)
        EACH(j, units)
        {
            lanes b = READ(w + j * k + at);
            EACH(i, rows) sum[i][j] += READ(x[i] + at) * b;
        }
    EACH(i, rows) EACH(j, units)
    {
        REAL total = 0;
        EACH(lane, LANES) total += sum[i][j][lane];
        z[i * m + j] = total;
    }
    for (; at < k; at++)
        EACH(i, rows) EACH(j, units) z[i * m + j] += x[i][at] * w[j * k + at];
}

/* to <- keep * from + scale * delta^T x, for `units` rows (units, k); delta is (n, m), and row i of x is at k * row[i], or
   at k * i. What is not kept is not read. The product is multiplied by `inverse` (units, k) where that is given. */
INLINE void sums(const REAL *x, const int64_t *row, const REAL *delta, const REAL *from, const REAL *inverse, REAL *to,
                 int64_t n, int64_t k, int64_t m, REAL keep, REAL scale, const int units)
{
    int64_t at = 0;
    for (; at <= k - 2 * LANES; at += 2 * LANES) {
        lanes low[UNITS], high[UNITS];
        EACH(j, units) low[j] = high[j] = (lanes){0};
        for (int64_t i = 0; i < n; i++) {
            const REAL *place = x + k * (row ? row[i] : i) + at;
            lanes a = READ(place), b = READ(place + LANES);
            EACH(j, units)
            {
                low[j] += a * delta[i * m + j];
                high[j] += b * delta[i * m + j];
            }
        }
        EACH(j, units)
        {
            int64_t here = j * k + at;
            low[j] *= scale, high[j] *= scale;
            if (inverse)
                low[j] *= READ(inverse + here), high[j] *= READ(inverse + here + LANES);
            if (keep)
                low[j] += keep * READ(from + here), high[j] += keep * READ(from + here + LANES);
            WRITE(to + here) = low[j];
            WRITE(to + here + LANES) = high[j];
        }
    }
    for (; at < k; at++)
        EACH(j, units)
        {
            int64_t here = j * k + at;
            REAL total = 0;
            for (int64_t i = 0; i < n; i++)
                total += x[k * (row ? row[i] : i) + at] * delta[i * m + j];
            total *= inverse ? scale * inverse[here] : scale;
            to[here] = keep ? keep * from[here] + total : total;
        }
}

/* The same for all units of one layer of one client. */
INLINE void layer(const REAL *x, const int64_t *row, const REAL *delta, const REAL *from, const REAL *inverse, REAL *to,
                  int64_t n, int64_t k, int64_t m, REAL keep, REAL scale)
{
    int64_t j = 0;
    for (; j <= m - UNITS; j += UNITS)
        sums(x, row, delta + j, from + j * k, inverse ? inverse + j * k : 0, to + j * k, n, k, m, keep, scale, UNITS);
    for (; j < m; j++)
        sums(x, row, delta + j, from + j * k, inverse ? inverse + j * k : 0, to + j * k, n, k, m, keep, scale, 1);
}

/* w (c, m, k) <- w + scale * inverse * delta^T x, for x (c, n, k) and delta (c, n, m). */
void scaled(const REAL *x, const REAL *delta, const REAL *inverse, REAL *w, int64_t inverse_stride, int64_t stride,
            int64_t c, int64_t n, int64_t k, int64_t m, double scale)
{
    for (int64_t client = 0; client < c; client++, x += n * k, delta += n * m, inverse += inverse_stride, w += stride)
        layer(x, 0, delta, w, inverse, w, n, k, m, 1, scale);
}

/* Softmax regression: to <- keep * v + scale * gradient of the mean cross entropy at v, which may be the same place; the
   gradient is multiplied by `inverse` where that is given.

   v, inverse and to are c vectors, with weights (m, k) at `weight` and biases (m) at `bias`. A client's examples are the
   rows `row` (n) of x; loss and share are as above, and z (n, m) is to work in. */
void regression(const REAL *x, const int64_t *row, const int64_t *label, const REAL *share, const REAL *v,
                const REAL *inverse, REAL *to, REAL *loss, REAL *z, int64_t v_stride, int64_t inverse_stride,
                int64_t to_stride, int64_t weight, int64_t bias, int64_t c, int64_t n, int64_t k, int64_t m,
                double keep, double scale)
{
    for (int64_t client = 0; client < c; client++, row += n, label += n, v += v_stride, to += to_stride) {
        const REAL *w = v + weight, *b = v + bias;
        for (int64_t i = 0; i < n; i += ROWS) {
            const REAL *place[ROWS] = {x + k * row[i], x + k * row[i + 1 < n ? i + 1 : i]};
            int64_t j = 0;
            if (i + ROWS <= n)
                for (; j <= m - UNITS; j += UNITS)
                    products(place, w + j * k, z + i * m + j, k, m, ROWS, UNITS);
            for (; j < m; j++)
                for (int64_t rest = i; rest < n && rest < i + ROWS; rest++)
                    products(place + (rest - i), w + j * k, z + rest * m + j, k, m, 1, 1);
        }
        affine(z, b, 0, 1, n, m, 0);
        cross_entropy(z, label, share ? share + client * n : share, loss + client, 1, n, m);
        const REAL *factor = inverse ? inverse + client * inverse_stride : 0;
        layer(x, row, z, w, factor ? factor + weight : 0, to + weight, n, k, m, keep, scale);
        backward(z, 0, b, factor ? factor + bias : 0, to + bias, 0, 0, 0, 1, n, m, keep, scale);
    }
}
