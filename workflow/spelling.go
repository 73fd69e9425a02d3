package workflow

import "strings"

// hint names the likely spelling of an unknown key, or else the keys that are known.
func hint(key string, forms []*mapping) string {
	var names []string
	for _, f := range forms {
		for _, p := range f.props {
			names = append(names, p.name)
		}
	}
	if s := similar(key, names); s != "" {
		return s
	}
	if len(names) == 0 || len(forms) > 1 {
		return ""
	}
	return "; expected one of " + list(names)
}

// similar is "; did you mean 'x'?" for the word nearest to the one that was written, or "".
func similar(written string, words []string) string {
	if len(written) == 0 || len(written) > 40 {
		return ""
	}
	best, at := "", max(1, len(written)/3)+1
	for _, w := range words {
		if d := distance(strings.ToLower(written), strings.ToLower(w)); d < at {
			best, at = w, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean '" + best + "'?"
}

// distance is the number of edits between two short words; swapped neighbours count as one.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// list quotes words for a message.
func list(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("'" + w + "'")
	}
	return b.String()
}
