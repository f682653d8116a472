/* What lies between the matrix products of a stack of fully connected networks, each in one walk over memory.

   REAL is float or double. c clients, n examples each, m units: an activation is (c, n, m) and contiguous; a bias and
   the gradient of one are (c, m) with `stride` numbers from one client to the next. Numbers that are none stay none.
   Sums go over the examples in their order. */

#include <stdint.h>
#include <tgmath.h>

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

/* delta <- delta where hidden > 0, else 0 (as it is where hidden is not given); total <- its sum over the examples. */
void backward(REAL *restrict delta, const REAL *restrict hidden, REAL *restrict total, int64_t stride, int64_t c,
              int64_t n, int64_t m)
{
    for (int64_t client = 0; client < c; client++) {
        REAL *sum = total + client * stride;
        for (int64_t unit = 0; unit < m; unit++)
            sum[unit] = 0;
        for (int64_t example = 0; example < n; example++) {
            int64_t start = (client * n + example) * m;
            if (hidden)
                for (int64_t unit = 0; unit < m; unit++)
                    delta[start + unit] = hidden[start + unit] > 0 ? delta[start + unit] : 0;
            for (int64_t unit = 0; unit < m; unit++)
                sum[unit] += delta[start + unit];
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
