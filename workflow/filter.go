package workflow

import (
	"fmt"
	"strings"
)

// pattern is a compiled filter pattern: * any but a slash, ** anything, ? none or one and + one or more of the
// character before it, [] one of a set, \ takes the next character as it is. Matching costs the product of both
// lengths at worst.
type pattern []element

// element is one position of a pattern with how often it may repeat.
type element struct {
	set      func(r rune) bool
	optional bool // may be left out
	repeat   bool // may stand more than once
	dirs     bool // **/ at the start of a path's part: any number of whole parts, or none
}

// maxPattern bounds the length of a pattern in bytes.
const maxPattern = 1024

// compilePattern reads a pattern without its leading '!'.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#filter-pattern-cheat-sheet
func compilePattern(s string) (pattern, error) {
	if len(s) > maxPattern {
		return nil, fmt.Errorf("it is longer than %d bytes", maxPattern)
	}
	var p pattern
	runes := []rune(s)
	for i := 0; i < len(runes); i++ {
		switch c := runes[i]; {
		case c == '*':
			i = p.star(runes, i)
		case (c == '?' || c == '+') && len(p) > 0:
			last := &p[len(p)-1]
			last.optional = last.optional || c == '?'
			last.repeat = last.repeat || c == '+'
		case c == '[':
			set, end, err := class(runes, i)
			if err != nil {
				return nil, err
			}
			p = append(p, element{set: set})
			i = end
		case c == '\\':
			if i++; i == len(runes) {
				return nil, fmt.Errorf("nothing follows the backslash at its end")
			}
			p = append(p, literal(runes[i]))
		default:
			p = append(p, literal(c))
		}
	}
	return p, nil
}

func literal(c rune) element {
	return element{set: func(r rune) bool { return r == c }}
}

// star reads * or ** and returns the index of its last character.
func (p *pattern) star(runes []rune, i int) int {
	if i+1 == len(runes) || runes[i+1] != '*' {
		*p = append(*p, element{set: func(r rune) bool { return r != '/' }, optional: true, repeat: true})
		return i
	}
	start := i
	for i+1 < len(runes) && runes[i+1] == '*' {
		i++
	}
	all := element{set: func(rune) bool { return true }, optional: true, repeat: true}
	if (start == 0 || runes[start-1] == '/') && i+1 < len(runes) && runes[i+1] == '/' {
		all.dirs = true
		i++
	}
	*p = append(*p, all)
	return i
}

// class reads [...] and returns the index of its end.
func class(runes []rune, i int) (set func(rune) bool, end int, err error) {
	type span struct{ lo, hi rune }
	var spans []span
	at := i + 1
	for ; at < len(runes) && (runes[at] != ']' || at == i+1); at++ {
		lo := runes[at]
		if lo == '\\' && at+1 < len(runes) {
			at++
			lo = runes[at]
		}
		hi := lo
		if at+2 < len(runes) && runes[at+1] == '-' && runes[at+2] != ']' {
			hi = runes[at+2]
			at += 2
		}
		if hi < lo {
			return nil, 0, fmt.Errorf("the range %c-%c is the wrong way round", lo, hi)
		}
		spans = append(spans, span{lo, hi})
	}
	if at >= len(runes) {
		return nil, 0, fmt.Errorf("the '[' at position %d is not closed", i+1)
	}
	return func(r rune) bool {
		for _, s := range spans {
			if r >= s.lo && r <= s.hi {
				return true
			}
		}
		return false
	}, at, nil
}

// match reports whether the whole of s matches. It runs all alternatives at once: state k means that the elements
// before k have matched.
func (p pattern) match(s string) bool {
	cur, next := make([]bool, len(p)+1), make([]bool, len(p)+1)
	cur[0] = true
	before := '/'
	for _, r := range s {
		p.skip(cur, before)
		clear(next)
		alive := false
		for k, on := range cur[:len(p)] {
			if on && p[k].set(r) {
				next[k+1] = next[k+1] || !p[k].dirs || r == '/'
				next[k] = next[k] || p[k].repeat
				alive = true
			}
		}
		if !alive {
			return false
		}
		cur, next = next, cur
		before = r
	}
	p.skip(cur, before)
	return cur[len(p)]
}

// skip adds the states that are reached by leaving optional elements out.
func (p pattern) skip(states []bool, before rune) {
	for k := range p {
		if states[k] && p[k].optional && (!p[k].dirs || before == '/') {
			states[k+1] = true
		}
	}
}

// filter is an ordered list of patterns of which the later ones win; one with a leading '!' takes away.
type filter []rule

type rule struct {
	negated bool
	pattern pattern
}

// compileFilter drops the patterns that are not valid; Parse has reported them.
func compileFilter(patterns []string) filter {
	f := make(filter, 0, len(patterns))
	for _, s := range patterns {
		s, negated := strings.CutPrefix(s, "!")
		if p, err := compilePattern(s); err == nil {
			f = append(f, rule{negated, p})
		}
	}
	return f
}

func (f filter) match(s string) bool {
	for i := len(f) - 1; i >= 0; i-- {
		if f[i].pattern.match(s) {
			return !f[i].negated
		}
	}
	return false
}
