// Of pulp-platform/common_cells, which ita_package.sv takes one function of.

package cf_math_pkg;
  function automatic int unsigned idx_width(input int unsigned n);
    return n > 1 ? $clog2(n) : 1;
  endfunction
endpackage
