package expr

import (
	"math"
	"strings"
	"testing"
)

func TestParseNumber(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, test := range []struct {
		text string
		want float64
	}{
		{"", 0}, {"  ", 0}, {"\t\r\n\v\f\u00a0\u2028\u2029\ufeff\u3000", 0},
		{"0", 0}, {"-0", 0}, {"007", 7}, {" 1 ", 1}, {"1.", 1}, {".5", .5}, {"+.5e1", 5}, {"-1.5E-1", -.15}, {"1e400", inf}, {"-1e400", -inf}, {"1e-400", 0},
		{"Infinity", inf}, {"+Infinity", inf}, {"-Infinity", -inf},
		{"infinity", nan}, {"inf", nan}, {"NaN", nan}, {"nan", nan},
		{"0xff", 255}, {"0XFf", 255}, {"0o17", 15}, {"0O17", 15}, {"0b101", 5}, {"0B1", 1},
		{"0x", nan}, {"0o", nan}, {"0xg", nan}, {"0o8", nan}, {"0b2", nan}, {"-0x1", nan}, {"+0b1", nan}, {"0x1p2", nan}, {"0x1.8", nan}, {"0x_1", nan},
		{"0xffffffffffffffff", 18446744073709551615}, {"0x20000000000001", 9007199254740992}, {"0x20000000000003", 9007199254740996},
		{"0x1" + strings.Repeat("0", 255), math.Pow(2, 1020)}, {"0x1" + strings.Repeat("0", 256), inf}, {"0b1" + strings.Repeat("0", 1023), math.Pow(2, 1023)},
		{"0b1" + strings.Repeat("0", 1024), inf}, {"0x" + strings.Repeat("f", 1<<20), inf}, {"0x" + strings.Repeat("0", 1<<20) + "1", 1},
		{".", nan}, {"+", nan}, {"-", nan}, {"e5", nan}, {".e5", nan}, {"1e", nan}, {"1e+", nan}, {"1e1.5", nan}, {"1.2.3", nan}, {"1_0", nan}, {"1,0", nan}, {"--1", nan},
		{"- 1", nan}, {"1 2", nan}, {"\u00851", nan}, {"١", nan}, {"1f", nan}, {"true", nan}, {"\x00", nan},
	} {
		got := parseNumber(test.text)
		if got != test.want && !(math.IsNaN(got) && math.IsNaN(test.want)) {
			t.Errorf("parseNumber(%.40q) = %v, want %v", test.text, got, test.want)
		}
	}
}

func TestFormatNumber(t *testing.T) {
	for _, test := range []struct {
		f    float64
		want string
	}{
		{0, "0"}, {math.Copysign(0, -1), "0"}, {1, "1"}, {-1, "-1"}, {.5, "0.5"}, {-.5, "-0.5"}, {100, "100"}, {1234.5, "1234.5"},
		{math.NaN(), "NaN"}, {math.Inf(1), "Infinity"}, {math.Inf(-1), "-Infinity"},
		{0.1 + 0.2, "0.3"}, {0.84551240822557006, "0.84551240822557"}, {1.0 / 3, "0.333333333333333"}, {2.0 / 3, "0.666666666666667"},
		{123456.78901234567, "123456.789012346"}, {999999999999999, "999999999999999"}, {-999999999999999, "-999999999999999"},
		{999999999999999.9, "1E+15"}, {999999999999.9999, "1000000000000"}, {0.99999999999999994, "1"}, {9.9999999999999991e-5, "0.0001"},
		{1e15, "1E+15"}, {1234567890123456789, "1.23456789012346E+18"}, {-1.5e300, "-1.5E+300"},
		{0.0001, "0.0001"}, {0.00012345, "0.00012345"}, {0.00001, "1E-05"}, {-0.000012, "-1.2E-05"}, {1e-7, "1E-07"}, {5e-324, "4.94065645841247E-324"},
	} {
		if got := formatNumber(test.f); got != test.want {
			t.Errorf("formatNumber(%v) = %s, want %s", test.f, got, test.want)
		}
	}
}

// What formatNumber writes, parseNumber reads to within 15 digits.
func FuzzNumber(f *testing.F) {
	for _, x := range []float64{0, 1, .1, 1e15, 1e-5, 123456789.125, math.MaxFloat64, 5e-324} {
		f.Add(x)
	}
	f.Fuzz(func(t *testing.T, x float64) {
		text := formatNumber(x)
		y := parseNumber(text)
		if math.IsNaN(x) != math.IsNaN(y) {
			t.Fatalf("%v became %s and %v", x, text, y)
		}
		if x != y && !math.IsNaN(x) && !math.IsInf(y, 0) && math.Abs(x-y) > math.Abs(x)*1e-14 {
			t.Errorf("%v became %s and %v", x, text, y)
		}
		if again := formatNumber(y); again != text && !math.IsInf(y, 0) {
			t.Errorf("%v became %s, which became %s", x, text, again)
		}
	})
}
