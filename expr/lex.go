package expr

import (
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tokenKind is the kind of a token.
type tokenKind uint8

const (
	tokEnd tokenKind = iota
	tokLeftParen
	tokRightParen
	tokLeftBracket
	tokRightBracket
	tokComma
	tokDot
	tokStar
	tokNot
	tokEqual
	tokNotEqual
	tokLess
	tokLessEqual
	tokGreater
	tokGreaterEqual
	tokAnd
	tokOr
	tokName
	tokLiteral // a number, a string, true, false or null
)

// token is one word of an expression: text[start:end]. value is that of a literal.
type token struct {
	kind       tokenKind
	start, end int
	value      Value
}

// maxLength is the longest expression that GitHub takes, in UTF-16 units.
const maxLength = 21000

// lexer cuts an expression into tokens. Like GitHub's it knows only one context: what came before tells
// whether a point begins a number and whether true is a word or a property.
type lexer struct {
	src    *source
	text   string
	start  int // of the token at hand
	pos    int
	tokens []token
}

// lex returns the tokens of s.text; the last one is tokEnd.
func lex(s *source) ([]token, *Error) {
	if len(s.text) > maxLength && utf16Len(s.text) > maxLength {
		return nil, s.at(Lexing, s.base, "Exceeded max expression length 21000")
	}
	l := &lexer{src: s, text: s.text, tokens: make([]token, 0, len(s.text)/4+4)}
	for {
		l.skipSpace()
		l.start = l.pos
		if l.pos == len(l.text) {
			l.add(tokEnd)
			return l.tokens, nil
		}
		if err := l.next(); err != nil {
			return nil, err
		}
	}
}

func (l *lexer) skipSpace() {
	for l.pos < len(l.text) {
		r, n := utf8.DecodeRuneInString(l.text[l.pos:])
		if !isSpace(r) {
			return
		}
		l.pos += n
	}
}

// isSpace tells whether r separates tokens.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r == '\ufeff' }

// next adds the token that begins at l.start.
func (l *lexer) next() *Error {
	c := l.text[l.pos]
	l.pos++
	switch c {
	case '(':
		l.add(tokLeftParen)
	case ')':
		l.add(tokRightParen)
	case '[':
		l.add(tokLeftBracket)
	case ']':
		l.add(tokRightBracket)
	case ',':
		l.add(tokComma)
	case '*':
		l.add(tokStar)
	case '!':
		l.addEither('=', tokNotEqual, tokNot)
	case '<':
		l.addEither('=', tokLessEqual, tokLess)
	case '>':
		l.addEither('=', tokGreaterEqual, tokGreater)
	case '=', '&', '|':
		return l.double(c)
	case '\'':
		return l.quoted()
	case '.':
		if l.dereferences() {
			l.add(tokDot)
			return nil
		}
		return l.number()
	case '+', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return l.number()
	default:
		return l.name()
	}
	return nil
}

func (l *lexer) add(kind tokenKind) {
	l.tokens = append(l.tokens, token{kind: kind, start: l.start, end: l.pos})
}

func (l *lexer) addLiteral(v Value) *Error {
	l.tokens = append(l.tokens, token{kind: tokLiteral, start: l.start, end: l.pos, value: v})
	return nil
}

// addEither adds long where c follows, else short.
func (l *lexer) addEither(c byte, long, short tokenKind) {
	if l.pos < len(l.text) && l.text[l.pos] == c {
		l.pos++
		short = long
	}
	l.add(short)
}

// double adds ==, && or ||, none of which has a short form.
func (l *lexer) double(c byte) *Error {
	if l.pos == len(l.text) || l.text[l.pos] != c {
		return l.name() // which fails, having found the end of the mistake
	}
	l.pos++
	switch c {
	case '=':
		l.add(tokEqual)
	case '&':
		l.add(tokAnd)
	default:
		l.add(tokOr)
	}
	return nil
}

// previous returns the kind of the token before the one at hand, tokEnd at the start.
func (l *lexer) previous() tokenKind {
	if len(l.tokens) == 0 {
		return tokEnd
	}
	return l.tokens[len(l.tokens)-1].kind
}

// dereferences tells whether a point here is an operator; otherwise it begins a number.
func (l *lexer) dereferences() bool {
	switch l.previous() {
	case tokName, tokRightBracket, tokRightParen, tokStar:
		return true
	default:
		return false
	}
}

// number reads on to the end of a number, points included.
func (l *lexer) number() *Error {
	l.toBoundary(true)
	if f := parseNumber(l.text[l.start:l.pos]); !math.IsNaN(f) {
		return l.addLiteral(Num(f))
	}
	return l.illegal()
}

// quoted reads a string in single quotes; a quote in it is written twice.
func (l *lexer) quoted() *Error {
	escaped := false
	for {
		i := strings.IndexByte(l.text[l.pos:], '\'')
		if i < 0 {
			l.pos = len(l.text)
			return l.illegal()
		}
		l.pos += i + 1
		if l.pos == len(l.text) || l.text[l.pos] != '\'' {
			break
		}
		l.pos++
		escaped = true
	}
	s := l.text[l.start+1 : l.pos-1]
	if escaped {
		s = strings.ReplaceAll(s, "''", "'")
	}
	return l.addLiteral(Str(s))
}

// name reads a name or a keyword. After a point every word is a property.
func (l *lexer) name() *Error {
	l.toBoundary(false)
	word := l.text[l.start:l.pos]
	if l.previous() != tokDot {
		switch word {
		case "true":
			return l.addLiteral(Bool(true))
		case "false":
			return l.addLiteral(Bool(false))
		case "null":
			return l.addLiteral(Null())
		case "NaN":
			return l.addLiteral(Num(math.NaN()))
		case "Infinity":
			return l.addLiteral(Num(math.Inf(1)))
		}
	}
	if !isName(word) {
		return l.illegal()
	}
	l.add(tokName)
	return nil
}

// toBoundary moves on to the next character that ends a word; a point does so unless points is set.
func (l *lexer) toBoundary(points bool) {
	for i, r := range l.text[l.pos:] {
		if strings.ContainsRune("([)],!><=&|", r) || r == '.' && !points || isSpace(r) {
			l.pos += i
			return
		}
	}
	l.pos = len(l.text)
}

func (l *lexer) illegal() *Error {
	return l.src.symbol(Lexing, "Unexpected symbol", l.text[l.start:l.pos], l.src.base+l.start)
}

// isName tells whether s is an ASCII letter or an underscore, followed by letters, digits, underscores and hyphens.
func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case i > 0 && ('0' <= c && c <= '9' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}
