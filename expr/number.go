package expr

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"
)

// parseNumber returns the number that s spells, as JavaScript's Number() does: white space around it is ignored, nothing
// is 0, 0x, 0o and 0b begin unsigned integers, Infinity may have a sign. Everything else is NaN.
func parseNumber(s string) float64 {
	s = strings.TrimFunc(s, isNumberSpace)
	if s == "" {
		return 0
	}
	if len(s) > 2 && s[0] == '0' {
		switch s[1] {
		case 'x', 'X':
			return parseInteger(s[2:], 4)
		case 'o', 'O':
			return parseInteger(s[2:], 3)
		case 'b', 'B':
			return parseInteger(s[2:], 1)
		}
	}
	switch s {
	case "Infinity", "+Infinity":
		return math.Inf(1)
	case "-Infinity":
		return math.Inf(-1)
	}
	if !isDecimal(s) {
		return math.NaN()
	}
	f, _ := strconv.ParseFloat(s, 64) // the only error left is the range, and then f is an infinity
	return f
}

// isNumberSpace tells whether JavaScript strips r from the ends of a number.
func isNumberSpace(r rune) bool {
	return r != '\u0085' && unicode.IsSpace(r) || r == '\ufeff'
}

// isDecimal tells whether s is a sign, digits with at most one point among them, and an exponent; all but the digits optional.
func isDecimal(s string) bool {
	s = skipSign(s)
	whole := countDigits(s)
	s = s[whole:]
	fraction := 0
	if strings.HasPrefix(s, ".") {
		fraction = countDigits(s[1:])
		s = s[1+fraction:]
	}
	if whole+fraction == 0 {
		return false
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = skipSign(s[1:])
		n := countDigits(s)
		return n > 0 && n == len(s)
	}
	return s == ""
}

func skipSign(s string) string {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		return s[1:]
	}
	return s
}

func countDigits(s string) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// parseInteger returns the number that digits of the given width in bits spell, or NaN.
func parseInteger(digits string, bits int) float64 {
	for _, c := range []byte(digits) {
		if digitValue(c) >= 1<<bits {
			return math.NaN()
		}
	}
	digits = strings.TrimLeft(digits, "0")
	if len(digits)*bits > 1024+bits { // more than a float64 reaches; do not count it out
		return math.Inf(1)
	}
	n := new(big.Int)
	for _, c := range []byte(digits) {
		n.Or(n.Lsh(n, uint(bits)), big.NewInt(int64(digitValue(c))))
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return f
}

// digitValue returns the value of a hexadecimal digit, and 16 for any other byte.
func digitValue(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	default:
		return 16
	}
}

// formatNumber returns f with at most 15 significant digits, as .NET's G15 does, which GitHub's runner uses:
// 1E+15 and 1E-05 are the first to have an exponent. Negative zero is 0.
func formatNumber(f float64) string {
	const precision = 15
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	case f == 0:
		return "0"
	case f == math.Trunc(f) && math.Abs(f) < 1e15:
		return strconv.FormatInt(int64(f), 10)
	}
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', precision-1, 64), "e")
	exp, _ := strconv.Atoi(exponent) // always a number: FormatFloat wrote it
	mantissa = strings.TrimRight(strings.TrimRight(mantissa, "0"), ".")
	if exp >= -4 && exp < precision {
		digits := len(strings.TrimLeft(mantissa, "-"))
		if digits > 1 {
			digits-- // the point
		}
		return strconv.FormatFloat(f, 'f', max(digits-1-exp, 0), 64)
	}
	sign := "+"
	if exp < 0 {
		sign, exp = "-", -exp
	}
	return mantissa + "E" + sign + strconv.Itoa(exp/10) + strconv.Itoa(exp%10)
}
