// The code of least score for each row, without a matrix of scores.
//
//     score(row, code) = offset(code) - row . code
//
// with offset = |code|^2 / 2 for the nearest code, and -bias for the argmax of a linear map. The id
// is that of the least score in double precision, summed in the order of the dimensions; of equal
// ones the lowest. Nearly all of the work is done in single precision, at the rate of a matrix
// product:
//
// 1. A centre is subtracted from rows and codes: it changes all scores of a row by the same amount,
//    and what is small rounds by little. The codes are packed into panels of PANEL codes.
// 2. The scores of ROWS rows and a panel are made in registers. Of the COLUMNS vectors that a row
//    has there only the least is kept, lane by lane: the least so far, the panel that it came from,
//    and the least of all other panels (`score_tile`).
// 3. A score is known to within `slack`, so that the lane of the best code comes within two slacks
//    of the best lane. Few lanes do: the COLUMNS codes of each are compared anew, those still as
//    near in double precision. Where the second best of a lane comes as near, the row is compared
//    with all codes (`resolve`).
//
// A product of two floats is exact in double precision, so that neither the width of the machine's
// vectors nor fused multiplication changes an id.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, COLUMNS = 4;  // for 32 registers
#elif defined(__AVX2__)
constexpr int WIDTH = 8, COLUMNS = 2;  // for 16 registers
#else
constexpr int WIDTH = 4, COLUMNS = 2;
#endif
constexpr int ROWS = 6, PANEL = WIDTH * COLUMNS;
constexpr int64_t BLOCK = 16 * ROWS;  // rows whose state stays in the first cache

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

constexpr float INFINITE = std::numeric_limits<float>::infinity();

inline Floats load(const float* from) {
  Floats vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

#if defined(__AVX512F__)
// One instruction, where compilers make two of a comparison.
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline float lowest(Floats a) { return _mm512_reduce_min_ps((__m512)a); }
inline float total(Floats a) { return _mm512_reduce_add_ps((__m512)a); }
// The lanes that are at most the limit, as bits.
inline unsigned within(Floats a, float limit) {
  return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(limit), _CMP_LE_OQ);
}
#else
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline float lowest(Floats a) {
  float least = a[0];
  for (int l = 1; l < WIDTH; ++l) least = a[l] < least ? a[l] : least;
  return least;
}
inline float total(Floats a) {
  float sum = 0;
  for (int l = 0; l < WIDTH; ++l) sum += a[l];
  return sum;
}
inline unsigned within(Floats a, float limit) {
  unsigned bits = 0;
  for (int l = 0; l < WIDTH; ++l) bits |= (unsigned)(a[l] <= limit) << l;
  return bits;
}
#endif

// The largest sizes of a table's offsets and codes, as they are and less the centre.
struct Sizes {
  double offset = 0, norm = 0, centred_offset = 0, centred_norm = 0;
};

struct Table {
  const float* codes;  // (size, dim)
  int64_t size, dim;
  std::vector<double> offsets;  // (size)
  std::vector<float> centre;    // (dim)
  std::vector<float> panels;    // (panels, dim + 1, PANEL): centred codes, and their offsets
  Sizes largest;
  double centre_norm = 0;

  const float* panel(int64_t number) const { return panels.data() + number * (dim + 1) * PANEL; }
  int64_t num_panels() const { return (size + PANEL - 1) / PANEL; }
};

// The larger of two numbers that are not negative; what is not a number stays.
inline double most_of(double a, double b) { return a >= b || std::isnan(a) ? a : b; }

Sizes most_of(const Sizes& a, const Sizes& b) {
  return {most_of(a.offset, b.offset), most_of(a.norm, b.norm),
          most_of(a.centred_offset, b.centred_offset), most_of(a.centred_norm, b.centred_norm)};
}

Sizes pack_panel(Table& table, int64_t panel, const double* biases) {
  const int64_t dim = table.dim, start = panel * PANEL;
  const int64_t count = std::min<int64_t>(PANEL, table.size - start);
  const float* codes = table.codes + start * dim;
  float* packed = &table.panels[panel * (dim + 1) * PANEL];
  double squares[PANEL] = {}, centred_squares[PANEL] = {};
  for (int64_t k = 0; k < dim; ++k, packed += PANEL)
    for (int64_t j = 0; j < count; ++j) {
      const double value = codes[j * dim + k], centred = value - table.centre[k];
      packed[j] = (float)centred;
      squares[j] += value * value;
      centred_squares[j] += centred * centred;
    }
  std::fill(packed + count, packed + PANEL, INFINITE);
  Sizes largest;
  for (int64_t j = 0; j < count; ++j) {
    const double offset = biases ? -biases[start + j] : squares[j] / 2;
    const double centred_offset = biases ? offset : centred_squares[j] / 2;
    table.offsets[start + j] = offset;
    packed[j] = (float)centred_offset;
    largest = most_of(largest, {std::abs(offset), std::sqrt(squares[j]), std::abs(centred_offset),
                                std::sqrt(centred_squares[j])});
  }
  return largest;
}

Table pack(const float* codes, const double* biases, int64_t size, int64_t dim, int64_t threads) {
  Table table{codes, size, dim, {}, {}, {}, {}};
  table.offsets.resize(size);
  table.centre.resize(dim);
  table.panels.resize(table.num_panels() * (dim + 1) * PANEL);
  if (!biases) {  // a linear map's argument has no centre in common with its weights
    std::vector<double> sums(dim);
    for (int64_t code = 0; code < size; ++code)
      for (int64_t k = 0; k < dim; ++k) sums[k] += codes[code * dim + k];
    for (int64_t k = 0; k < dim; ++k) {
      table.centre[k] = (float)(sums[k] / size);
      table.centre_norm = std::hypot(table.centre_norm, table.centre[k]);
    }
  }
  std::vector<Sizes> largest(table.num_panels());
#pragma omp parallel for num_threads(threads)
  for (int64_t panel = 0; panel < table.num_panels(); ++panel)
    largest[panel] = pack_panel(table, panel, biases);
  for (const Sizes& of_panel : largest) table.largest = most_of(table.largest, of_panel);
  return table;
}

// What a thread needs for a block of rows.
struct Workspace {
  std::vector<float> rows;  // (BLOCK / ROWS, dim, ROWS), less the centre
  // Of each row and lane: the least score, the least of all other panels, and its panel.
  Floats best[BLOCK], second[BLOCK];
  Ints panel[BLOCK];
};

void score_tile(const Table& table, int64_t panel, int64_t first, Workspace& space) {
  const float* codes = table.panel(panel);
  const float* rows = &space.rows[first * table.dim];
  Floats scores[ROWS][COLUMNS];
  for (int c = 0; c < COLUMNS; ++c) {
    const Floats offsets = load(codes + table.dim * PANEL + c * WIDTH);
    for (int r = 0; r < ROWS; ++r) scores[r][c] = offsets;
  }
  for (int64_t k = 0; k < table.dim; ++k, codes += PANEL, rows += ROWS) {
    Floats code[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) code[c] = load(codes + c * WIDTH);
    for (int r = 0; r < ROWS; ++r) {
      const Floats x = Floats{} + rows[r];
      for (int c = 0; c < COLUMNS; ++c) scores[r][c] -= x * code[c];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    Floats &best = space.best[first + r], &second = space.second[first + r], least = scores[r][0];
    Ints& from = space.panel[first + r];
    for (int c = 1; c < COLUMNS; ++c) least = smaller(scores[r][c], least);
    second = smaller(larger(least, best), second);
    from = least < best ? Ints{} + (int32_t)panel : from;
    best = smaller(least, best);
  }
}

// (a - centre) . (b - centre)
float centred_product(const Table& table, const float* a, const float* b) {
  const float* centre = table.centre.data();
  int64_t k = 0;
  float product = 0;
  if (table.dim >= WIDTH) {
    Floats products{};
    for (; k + WIDTH <= table.dim; k += WIDTH)
      products += (load(a + k) - load(centre + k)) * (load(b + k) - load(centre + k));
    product = total(products);
  }
  for (; k < table.dim; ++k) product += (a[k] - centre[k]) * (b[k] - centre[k]);
  return product;
}

// The largest difference between a score in single precision and what it would be without rounding,
// in either precision: a rounding for each of the steps, of what is at most |offset| + |row| |code|
// (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and underflow.
float slack_of(const Table& table, const float* row) {
  const double norm = (1.001 + 1e-7 * table.dim) * std::sqrt(centred_product(table, row, row));
  const Sizes& largest = table.largest;
  const double single = largest.centred_offset + norm * largest.centred_norm;
  const double exact = largest.offset + (norm + table.centre_norm) * largest.norm;
  if (!(exact < 1e37 && single < 1e37)) return INFINITE;
  constexpr double smallest = std::numeric_limits<float>::min();
  return (float)(1.01 * (table.dim + 6) * (single * 0x1p-24 + exact * 0x1p-53 + smallest));
}

float quick_score(const Table& table, const float* row, int64_t code) {
  const float offset = table.panel(code / PANEL)[table.dim * PANEL + code % PANEL];
  return offset - centred_product(table, row, table.codes + code * table.dim);
}

double exact_score(const Table& table, const float* row, int64_t code) {
  const float* values = table.codes + code * table.dim;
  double product = 0;
  for (int64_t k = 0; k < table.dim; ++k) product += (double)row[k] * values[k];
  return table.offsets[code] - product;
}

// The best code so far, in double precision.
struct Choice {
  int64_t code = -1;
  double score = 0;

  void compare(const Table& table, const float* row, int64_t other) {
    const int64_t dim = table.dim;
    const float *mine = table.codes + code * dim, *theirs = table.codes + other * dim;
    const bool is_same = code >= 0 && table.offsets[code] == table.offsets[other] &&
                         !std::memcmp(mine, theirs, dim * sizeof(float));
    const double found = is_same ? score : exact_score(table, row, other);
    // As in torch, what is not a number is less than all numbers.
    const bool is_less = found < score || (std::isnan(found) && !std::isnan(score));
    const bool is_equal = found == score || (std::isnan(found) && std::isnan(score));
    if (code < 0 || is_less || (is_equal && other < code)) code = other, score = found;
  }
};

// Of all codes whose scores are within the limit, the best. The scores are made as in score_tile.
int64_t compare_all(const Table& table, const float* row, int64_t r, float limit,
                    const Workspace& space) {
  const float* centred = &space.rows[r / ROWS * ROWS * table.dim + r % ROWS];
  Choice choice;
  for (int64_t panel = 0; panel < table.num_panels(); ++panel) {
    const float* codes = table.panel(panel);
    Floats scores[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) scores[c] = load(codes + table.dim * PANEL + c * WIDTH);
    for (int64_t k = 0; k < table.dim; ++k, codes += PANEL)
      for (int c = 0; c < COLUMNS; ++c)
        scores[c] -= (Floats{} + centred[k * ROWS]) * load(codes + c * WIDTH);
    for (int c = 0; c < COLUMNS; ++c)
      for (unsigned lanes = within(scores[c], limit); lanes; lanes &= lanes - 1) {
        const int64_t code = panel * PANEL + c * WIDTH + __builtin_ctz(lanes);
        if (code < table.size) choice.compare(table, row, code);
      }
  }
  return choice.code;
}

// The same whatever the scores in single precision are.
int64_t compare_exactly(const Table& table, const float* row) {
  Choice choice;
  for (int64_t code = 0; code < table.size; ++code) choice.compare(table, row, code);
  return choice.code;
}

int64_t resolve(const Table& table, const float* row, const Workspace& space, int64_t r) {
  const float least = lowest(space.best[r]);
  const float slack = 2.01f * slack_of(table, row);  // with the rounding of the limits themselves
  if (!(least + slack < INFINITE)) return compare_exactly(table, row);
  if (within(space.second[r], least + slack))
    return compare_all(table, row, r, least + slack, space);

  int64_t candidates[PANEL];
  float scores[PANEL], least_score = INFINITE;
  int count = 0, near = 0;
  for (unsigned lanes = within(space.best[r], least + slack); lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    int64_t code = (int64_t)space.panel[r][lane] * PANEL + lane;
    for (int c = 0; c < COLUMNS && code < table.size; ++c, code += WIDTH, ++count) {
      candidates[count] = code;
      scores[count] = quick_score(table, row, code);
      least_score = std::min(least_score, scores[count]);
    }
  }
  for (int i = 0; i < count; ++i) {
    candidates[near] = candidates[i];
    near += scores[i] <= least_score + slack;
  }
  if (near == 1) return candidates[0];
  Choice choice;
  for (int i = 0; i < near; ++i) choice.compare(table, row, candidates[i]);
  return choice.code;
}

void search_block(const Table& table, const float* rows, int64_t count, Workspace& space,
                  int64_t* ids) {
  const int64_t dim = table.dim, end = (count + ROWS - 1) / ROWS * ROWS;
  for (int64_t r = 0; r < end; ++r) {
    float* tile = &space.rows[r / ROWS * ROWS * dim + r % ROWS];
    for (int64_t k = 0; k < dim; ++k)
      tile[k * ROWS] = r < count ? rows[r * dim + k] - table.centre[k] : 0;
    space.best[r] = space.second[r] = Floats{} + INFINITE;
    space.panel[r] = Ints{};
  }
  for (int64_t panel = 0; panel < table.num_panels(); ++panel)
    for (int64_t r = 0; r < end; r += ROWS) score_tile(table, panel, r, space);
  for (int64_t r = 0; r < count; ++r) ids[r] = resolve(table, rows + r * dim, space, r);
}

}  // namespace

// Find the code of each row.
//
//     codes (size, dim), size >= 1, dim >= 1
//     biases (size) of a linear map, or null for the nearest code
//     rows (count, dim)
//     ids (count), the result
//
// Returns 0, or 1 where there is too little memory.
extern "C" int imagetok_search(const float* codes, const double* biases, int64_t size, int64_t dim,
                               const float* rows, int64_t count, int64_t threads, int64_t* ids) {
  try {
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    threads = std::max<int64_t>(1, std::min(threads, blocks));
    const Table table = pack(codes, biases, size, dim, threads);
    std::vector<Workspace> spaces(threads);
    for (Workspace& space : spaces) space.rows.resize(BLOCK * dim);
    std::atomic<int64_t> next_space{0}, next_row{0};
// torch's own threads, which wait at work for a while after each of its operations: others would
// have to share the cores with them.
#pragma omp parallel num_threads(threads)
    {
      Workspace& space = spaces[next_space++];
      for (int64_t start; (start = next_row.fetch_add(BLOCK)) < count;)
        search_block(table, rows + start * dim, std::min(BLOCK, count - start), space, ids + start);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
