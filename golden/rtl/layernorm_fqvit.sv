// FQ-ViT's LayerNorm: X = x * factor, S = sum X, D = S0_ROW * sum X**2 - S**2, A = |gamma| * C / (sqrt(D) * out_scale);
// N and M, the shift and the leading 8 bits of A, and the offset B differ by row and channel; y = rhe(sign*M*X + B, 2**N).
// docs/quantization.md, "FQ-ViT: an 8-bit multiplier". slope, gain and bias are mantissas: real = m / 2**exp.
module layernorm_fqvit #(
    parameter int S0_BITS        = 16,  // of an input word
    parameter int S0_ROW         = 64,  // of a row
    parameter int M0_BITS        = 32,  // of an output word
    parameter     FACTOR_FILE    = "",
    parameter int FACTOR_BITS    = 5,
    parameter     SIGN_FILE      = "",
    parameter int SIGN_BITS      = 2,
    parameter     SLOPE_FILE     = "",
    parameter int SLOPE_BITS     = 63,
    parameter     SLOPE_EXP_FILE = "",
    parameter int SLOPE_EXP_BITS = 12,
    parameter     GAIN_FILE      = "",
    parameter int GAIN_BITS      = 63,
    parameter     GAIN_EXP_FILE  = "",
    parameter int GAIN_EXP_BITS  = 12,
    parameter     BIAS_FILE      = "",
    parameter int BIAS_BITS      = 63,
    parameter     BIAS_EXP_FILE  = "",
    parameter int BIAS_EXP_BITS  = 12
) (
    input  logic               clk,
    input  logic               rst,
    input  logic [S0_BITS-1:0] s0_axis_tdata,
    input  logic               s0_axis_tvalid,
    output logic               s0_axis_tready,
    input  logic               s0_axis_tlast,
    output logic [M0_BITS-1:0] m0_axis_tdata,
    output logic               m0_axis_tvalid,
    input  logic               m0_axis_tready,
    output logic               m0_axis_tlast
);
  localparam longint OFFSET_MAX = 64'sh1000000000000000;  // 2**60
  localparam int LOAD = 0, START = 1, ROOT = 2, SCALE = 3, SHIFT = 4, OFFSET = 5, OUT = 6;

  logic signed [FACTOR_BITS-1:0] factor[0:S0_ROW-1];
  logic signed [SIGN_BITS-1:0] sign[0:S0_ROW-1];
  logic signed [SLOPE_BITS-1:0] slope_of[0:S0_ROW-1];
  logic signed [SLOPE_EXP_BITS-1:0] slope_exp[0:S0_ROW-1];
  logic signed [GAIN_BITS-1:0] gain[0:S0_ROW-1];
  logic signed [GAIN_EXP_BITS-1:0] gain_exp[0:S0_ROW-1];
  logic signed [BIAS_BITS-1:0] bias[0:S0_ROW-1];
  logic signed [BIAS_EXP_BITS-1:0] bias_exp[0:S0_ROW-1];
  initial $readmemh(FACTOR_FILE, factor);
  initial $readmemh(SIGN_FILE, sign);
  initial $readmemh(SLOPE_FILE, slope_of);
  initial $readmemh(SLOPE_EXP_FILE, slope_exp);
  initial $readmemh(GAIN_FILE, gain);
  initial $readmemh(GAIN_EXP_FILE, gain_exp);
  initial $readmemh(BIAS_FILE, bias);
  initial $readmemh(BIAS_EXP_FILE, bias_exp);

  // ------------------------------------------------------------------ the row: X, S and sum X**2, all below 2**31, 2**62
  logic [2:0] state;
  logic [31:0] j;
  logic signed [31:0] row[0:S0_ROW-1];
  logic signed [31:0] total;
  logic signed [63:0] squares;
  wire signed [31:0] scaled = 32'($signed(s0_axis_tdata)) * 32'(factor[j]);
  wire signed [63:0] square = scaled * scaled;
  wire signed [63:0] variance = squares * S0_ROW - total * total;

  wire rooted;
  wire [61:0] inverse;
  wire [7:0] inverse_exp;
  inverse_root root (clk, rst, state == START, variance[61:0], rooted, inverse, inverse_exp);

  // -------------------------------------------------------- SCALE: the channel's constants over the square root of D
  logic signed [62:0] slope, slant;  // their upper bits
  wire signed [125:0] slope_product = 63'(slope_of[j]) * $signed({1'b0, inverse});
  wire signed [125:0] gain_product = 63'(gain[j]) * $signed({1'b0, inverse});
  wire signed [62:0] gain_now = 63'(gain_product >>> 62);

  // ------------------------------------------------------------------------------------- SHIFT: N, M, and the guard bits
  logic [4:0] n;
  logic [7:0] m;
  logic [4:0] guard;
  wire signed [15:0] slope_shift = 16'(slope_exp[j]) + 16'(inverse_exp) - 16'sd62;  // A = slope / 2**slope_shift
  logic signed [15:0] top;  // the leading bit of the slope, -1 of 0
  always_comb begin
    top = -16'sd1;
    for (int i = 0; i < 63; i++) if (slope[i]) top = 16'(i);
  end
  wire signed [15:0] wanted = 16'sd7 - (top - slope_shift);
  wire signed [15:0] n_now = wanted < 0 ? 16'sd0 : wanted > 31 ? 16'sd31 : wanted;
  wire signed [15:0] beyond = 16'(bias_exp[j]) - n_now - 16'sd1;  // the one by which a bias is longer than OFFSET_MAX
  wire signed [15:0] guard_now = beyond < 0 ? 16'sd0 : beyond > 24 ? 16'sd24 : beyond;
  wire signed [15:0] m_shift = slope_shift - n_now;
  wire signed [8:0] m_now;  // saturates at 255
  round_shift #(63, 9, 1, 3) leading (slope, m_shift, m_now);

  // ---------------------------------------------------------------------- OFFSET: B = bias and mean in steps of 2**-N
  wire signed [15:0] n_wide = $signed({11'b0, n});
  wire signed [15:0] guard_wide = $signed({11'b0, guard});
  wire signed [63:0] beta_term, mean_term, offset_now;
  round_shift #(63, 64) beta (63'(bias[j]), 16'(bias_exp[j]) - n_wide - guard_wide, beta_term);
  wire signed [95:0] slant_product = slant * total;
  round_shift #(96, 64) mean (
      slant_product, 16'(gain_exp[j]) + 16'(inverse_exp) - 16'sd62 - n_wide - guard_wide, mean_term
  );
  wire signed [63:0] beta_clamped = beta_term > OFFSET_MAX ? OFFSET_MAX
                                  : beta_term < -OFFSET_MAX ? -OFFSET_MAX : beta_term;
  wire signed [63:0] mean_clamped = mean_term > OFFSET_MAX ? OFFSET_MAX
                                  : mean_term < -OFFSET_MAX ? -OFFSET_MAX : mean_term;
  wire signed [63:0] difference = beta_clamped - mean_clamped;
  round_shift #(64, 64, 0) guarded (difference, guard_wide, offset_now);

  // ---------------------------------------------------------------------------------------------------------------- OUT
  logic signed [63:0] offset;
  wire signed [63:0] magnified = row[j] * $signed({1'b0, m});
  wire signed [63:0] product = sign[j] < 0 ? -magnified : sign[j] == 0 ? '0 : magnified;
  wire signed [63:0] sum = product + offset;
  wire signed [63:0] y, flat;
  round_shift #(64, 64, 0) result (sum, n_wide, y);
  round_shift #(63, 64) flat_result (63'(bias[j]), 16'(bias_exp[j]), flat);  // of a row of equal values

  assign s0_axis_tready = state == LOAD;
  assign m0_axis_tdata  = M0_BITS'(variance == 0 ? flat : y);
  assign m0_axis_tvalid = state == OUT;
  assign m0_axis_tlast  = j == S0_ROW - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      state <= LOAD;
      j <= 0;
      total <= 0;
      squares <= 0;
    end else
      case (state)
        LOAD:
        if (s0_axis_tvalid) begin
          row[j] <= scaled;
          total <= total + scaled;
          squares <= squares + square;
          j <= s0_axis_tlast ? 0 : j + 1;
          if (s0_axis_tlast) state <= START;
        end
        START: state <= variance == 0 ? OUT : ROOT;
        ROOT: if (rooted) state <= SCALE;
        SCALE: begin
          slope <= 63'(slope_product >>> 62);
          slant <= sign[j] < 0 ? -gain_now : sign[j] == 0 ? '0 : gain_now;
          state <= SHIFT;
        end
        SHIFT: begin
          n <= n_now[4:0];
          m <= m_now[7:0];
          guard <= guard_now[4:0];
          state <= OFFSET;
        end
        OFFSET: begin
          offset <= offset_now;
          state <= OUT;
        end
        default:
        if (m0_axis_tready) begin
          j <= m0_axis_tlast ? 0 : j + 1;
          state <= m0_axis_tlast ? LOAD : variance == 0 ? OUT : SCALE;
          if (m0_axis_tlast) begin
            total <= 0;
            squares <= 0;
          end
        end
      endcase
  end
endmodule
