package expr

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrorKind is the stage that found an error.
type ErrorKind uint8

// The stages, in order.
const (
	Lexing     ErrorKind = iota // the text holds something that is no token
	Parsing                     // the tokens make no expression, or name something that does not exist
	Evaluation                  // the expression is sound and could not be computed
)

var errorKindNames = [...]string{Lexing: "lexing", Parsing: "parsing", Evaluation: "evaluation"}

// String returns lexing, parsing or evaluation.
func (k ErrorKind) String() string {
	if int(k) < len(errorKindNames) {
		return errorKindNames[k]
	}
	return "ErrorKind(" + strconv.Itoa(int(k)) + ")"
}

// Error is what is wrong with an expression or a template, and where.
// Every error of this package is an *Error, except those of FromJSON, and of a loader where it was called by Object.Get.
type Error struct {
	Kind    ErrorKind
	Offset  int    // in bytes, into the text given to Parse, ParseTemplate or ParseCondition
	Line    int    // from 1
	Column  int    // from 1, in characters
	Message string // as GitHub words it, without the place in the file
	Token   string // the name or the symbol that the message is about, as written; "" where it is about none
	Err     error  // what a function or the loader of a context returned, or nil
}

// Error returns the message; the place is left to the caller, who knows the file.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the error of the function or the loader that failed.
func (e *Error) Unwrap() error { return e.Err }

// source is the text that errors point into: src holds the expression that begins at base and is text.
type source struct {
	src  string // as given by the caller
	base int    // offset of text in src
	text string // one expression, without ${{ }} and the white space around it
}

// at returns an error at offset, which counts from the start of s.src.
func (s *source) at(kind ErrorKind, offset int, message string) *Error {
	e := &Error{Kind: kind, Offset: offset, Message: message}
	e.Line, e.Column = lineColumn(s.src, e.Offset)
	return e
}

// symbol returns an error about one token at offset in s.src, in the words of GitHub, which counts positions in
// UTF-16 units from the start of the expression.
func (s *source) symbol(kind ErrorKind, what, token string, offset int) *Error {
	var b strings.Builder
	b.WriteString(what)
	b.WriteString(": '")
	b.WriteString(token)
	b.WriteString("'. Located at position ")
	b.WriteString(strconv.Itoa(utf16Len(s.text[:offset-s.base]) + 1))
	b.WriteString(" within expression: ")
	b.WriteString(s.text)
	e := s.at(kind, offset, b.String())
	e.Token = token
	return e
}

// lineColumn returns the place of a byte offset in src: both from 1, the column in characters.
func lineColumn(src string, offset int) (line, column int) {
	before := src[:min(offset, len(src))]
	line = 1 + strings.Count(before, "\n")
	return line, 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
}

// utf16Len returns the length of s in UTF-16 units, which is how GitHub measures text.
func utf16Len(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r > 0xFFFF {
			n++
		}
	}
	return n
}
