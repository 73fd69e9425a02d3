package expr

import (
	"strings"
	"testing"
)

func TestCompareFold(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "A", 0}, {"aB", "Ab", 0}, {"a", "b", -1}, {"B", "a", 1}, {"a", "aa", -1}, {"aa", "A", 1}, {"", "a", -1},
		{"Z", "_", -1}, {"z", "_", -1}, // upper case decides, so letters come before the underscore
		{"ü", "Ü", 0}, {"ς", "Σ", 0}, {"ς", "σ", 0}, {"я", "Я", 0}, {"ǆ", "Ǆ", 0}, {"ǅ", "ǆ", 0}, {"𐐨", "𐐀", 0},
		{"ı", "I", 1}, {"ı", "i", 1}, {"i", "İ", -1}, {"ſ", "s", 1}, {"ß", "ss", 1}, {"ß", "SS", 1}, {"\u212a", "k", 1}, {"µ", "Μ", 0},
		{"😀", "｡", -1}, {"｡", "😀", 1}, {"😀", "\ud7ff", 1}, {"\ud7ff", "😀", -1}, {"😀", "😁", -1}, {"é", "z", 1},
	} {
		if got := compareFold(test.a, test.b); got != test.want {
			t.Errorf("compareFold(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
		if got := equalFold(test.a, test.b); got != (test.want == 0) {
			t.Errorf("equalFold(%q, %q) = %t", test.a, test.b, got)
		}
	}
}

func FuzzFold(f *testing.F) {
	f.Add("hello", "ELL", "x")
	f.Add("ςΣσ", "Σ", "ı")
	f.Add("😀\xff", "｡", "\ud7ff")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		a, b, c = strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?"), strings.ToValidUTF8(c, "?")
		if compareFold(a, b) != -compareFold(b, a) {
			t.Errorf("%q and %q: order depends on the side", a, b)
		}
		if compareFold(a, b) < 0 && compareFold(b, c) < 0 && compareFold(a, c) >= 0 {
			t.Errorf("%q < %q < %q is not transitive", a, b, c)
		}
		if equalFold(a, b) != (fold(a) == fold(b)) {
			t.Errorf("%q and %q: equalFold and fold differ", a, b)
		}
		whole := a + b + c
		if !hasPrefixFold(whole, fold(a)) || !hasSuffixFold(fold(whole), c) || !containsFold(whole, fold(b)) {
			t.Errorf("%q, %q and %q are not found in what they make", a, b, c)
		}
		if hasPrefixFold(a, b) != strings.HasPrefix(fold(a), fold(b)) || hasSuffixFold(a, b) != strings.HasSuffix(fold(a), fold(b)) {
			t.Errorf("%q and %q: prefix or suffix differs from that of the folded text", a, b)
		}
	})
}
