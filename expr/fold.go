package expr

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The language compares text without regard to case as .NET does (OrdinalIgnoreCase): each character is replaced
// by its simple upper case, and what is left is compared by UTF-16 units. The dotless ı and the long ſ stay
// as they are, so that no character outside ASCII equals one inside, and ß is not SS.
// https://github.com/dotnet/runtime, OrdinalCasing.

// foldRune returns the form of r that is compared.
func foldRune(r rune) rune {
	switch {
	case r < utf8.RuneSelf:
		if 'a' <= r && r <= 'z' {
			r -= 'a' - 'A'
		}
		return r
	case r == 'ı' || r == 'ſ':
		return r
	default:
		return unicode.ToUpper(r)
	}
}

// fold returns s in the form that is compared.
func fold(s string) string { return strings.Map(foldRune, s) }

// equalFold tells whether a and b are the same text.
func equalFold(a, b string) bool {
	if a == b {
		return true
	}
	return compareFold(a, b) == 0
}

// compareFold returns -1, 0 or 1 as a sorts before, with or after b.
func compareFold(a, b string) int {
	for a != "" && b != "" {
		ra, na := utf8.DecodeRuneInString(a)
		rb, nb := utf8.DecodeRuneInString(b)
		a, b = a[na:], b[nb:]
		if ra == rb {
			continue
		}
		if ra, rb = foldRune(ra), foldRune(rb); ra != rb {
			return compareUTF16(ra, rb)
		}
	}
	switch {
	case a != "":
		return 1
	case b != "":
		return -1
	default:
		return 0
	}
}

// compareUTF16 orders two different characters by their UTF-16 units: those beyond the basic plane, being
// written with surrogates, come before U+E000.
func compareUTF16(a, b rune) int {
	const surrogates, afterSurrogates = 0x10000, 0xE000
	switch aFar, bFar := a >= surrogates, b >= surrogates; {
	case aFar && !bFar && b >= afterSurrogates:
		return -1
	case bFar && !aFar && a >= afterSurrogates:
		return 1
	case a < b:
		return -1
	default:
		return 1
	}
}

// hasPrefixFold tells whether s begins with prefix.
func hasPrefixFold(s, prefix string) bool {
	for prefix != "" {
		if s == "" {
			return false
		}
		rs, ns := utf8.DecodeRuneInString(s)
		rp, np := utf8.DecodeRuneInString(prefix)
		if rs != rp && foldRune(rs) != foldRune(rp) {
			return false
		}
		s, prefix = s[ns:], prefix[np:]
	}
	return true
}

// hasSuffixFold tells whether s ends with suffix.
func hasSuffixFold(s, suffix string) bool {
	for suffix != "" {
		if s == "" {
			return false
		}
		rs, ns := utf8.DecodeLastRuneInString(s)
		rp, np := utf8.DecodeLastRuneInString(suffix)
		if rs != rp && foldRune(rs) != foldRune(rp) {
			return false
		}
		s, suffix = s[:len(s)-ns], suffix[:len(suffix)-np]
	}
	return true
}

// containsFold tells whether sub is somewhere in s.
func containsFold(s, sub string) bool {
	return strings.Contains(s, sub) || strings.Contains(fold(s), fold(sub))
}
