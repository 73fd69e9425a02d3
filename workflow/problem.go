package workflow

import (
	"fmt"
	"strings"
)

// Severity tells problems that make a workflow unusable from those that do not.
type Severity uint8

// The severities.
const (
	SeverityError Severity = iota
	SeverityWarning
)

// String is "error" or "warning".
func (s Severity) String() string {
	if s == SeverityWarning {
		return "warning"
	}
	return "error"
}

// Problem is one finding about a file. All problems of a file are reported at once.
type Problem struct {
	File         string
	Line, Column int    // from 1; 0 where the problem is the whole file's
	Message      string // what is wrong, what was expected and, where there is one, the likely spelling
	Rule         string // a short stable name of the kind of problem: "unexpected-key", "expression", "needs"
	Severity     Severity
	Excerpt      string // the line and a caret below the column; "" without a place
}

// String is file:line:column: severity: message [rule], in one line.
func (p Problem) String() string {
	place := p.File
	if p.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
	}
	return fmt.Sprintf("%s: %s: %s [%s]", place, p.Severity, p.Message, p.Rule)
}

// Error is the place and the message, so that a Problem can be an error.
func (p Problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// Failed reports whether one of the problems is an error.
func Failed(ps []Problem) bool {
	for _, p := range ps {
		if p.Severity == SeverityError {
			return true
		}
	}
	return false
}

// caret makes the excerpt: the line, shortened around the column where it is long, and a caret below the place.
func caret(line string, column int) string {
	const before, width = 60, 120
	runes := []rune(strings.TrimRight(line, "\r\n"))
	at := min(max(column-1, 0), len(runes))
	start := max(at-before, 0)
	end := min(len(runes), start+width)
	var b strings.Builder
	b.WriteString(string(runes[start:end]))
	b.WriteByte('\n')
	for _, r := range runes[start:at] {
		if r != '\t' {
			r = ' '
		}
		b.WriteRune(r)
	}
	b.WriteByte('^')
	return b.String()
}
