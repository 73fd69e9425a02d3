package expr

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// builtin is a function of the language itself. A nil call is case, whose arguments the evaluator computes as needed.
type builtin struct {
	sig  FunctionSig
	call func(ev *evaluator, args []Value) (Value, error)
}

// lookup returns the built-in function of that name, in any case, or nil.
func lookup(name string) *builtin {
	switch strings.ToLower(name) {
	case "case":
		return &builtin{FunctionSig{"case", 3, -1}, nil}
	case "contains":
		return &builtin{FunctionSig{"contains", 2, 2}, contains}
	case "endswith":
		return &builtin{FunctionSig{"endsWith", 2, 2}, endsWith}
	case "format":
		return &builtin{FunctionSig{"format", 1, 255}, format}
	case "fromjson":
		return &builtin{FunctionSig{"fromJSON", 1, 1}, fromJSON}
	case "join":
		return &builtin{FunctionSig{"join", 1, 2}, join}
	case "startswith":
		return &builtin{FunctionSig{"startsWith", 2, 2}, startsWith}
	case "tojson":
		return &builtin{FunctionSig{"toJSON", 1, 1}, toJSON}
	default:
		return nil
	}
}

// BuiltIns returns the names of the functions of the language itself.
func BuiltIns() []string {
	return []string{"case", "contains", "endsWith", "format", "fromJSON", "join", "startsWith", "toJSON"}
}

// mismatch says what is wrong with the number of arguments, "" if nothing is known to be. hashFiles is the caller's
// to provide, but takes the same arguments everywhere.
func (n *callNode) mismatch() string {
	if n.builtin != nil {
		return n.builtin.sig.mismatch(len(n.args))
	}
	hashFiles := FunctionSig{Name: "hashFiles", Min: 1, Max: 255}
	if strings.EqualFold(n.name, hashFiles.Name) {
		return hashFiles.mismatch(len(n.args))
	}
	return ""
}

// contains looks for an item in an array, with ==, or for text in a text. It is false where that makes no sense.
func contains(ev *evaluator, args []Value) (Value, error) {
	list, item := args[0], args[1]
	for _, v := range list.Items() {
		if err := ev.read(comparison(v, item)); err != nil {
			return Value{}, err
		}
		if Equal(v, item) {
			return Bool(true), nil
		}
	}
	return ev.match(list, item, containsFold)
}

func startsWith(ev *evaluator, args []Value) (Value, error) {
	return ev.match(args[0], args[1], hasPrefixFold)
}

func endsWith(ev *evaluator, args []Value) (Value, error) {
	return ev.match(args[0], args[1], hasSuffixFold)
}

// match compares the texts of two primitive values; any others do not match.
func (ev *evaluator) match(x, y Value, f func(x, y string) bool) (Value, error) {
	if !x.primitive() || !y.primitive() {
		return Bool(false), nil
	}
	xs, ys := x.Text(), y.Text()
	if err := ev.read(len(xs) + len(ys)); err != nil {
		return Value{}, err
	}
	return Bool(f(xs, ys)), nil
}

// join puts a separator, a comma unless given, between the texts of an array's items.
// Any other primitive is its own text, an object none.
func join(ev *evaluator, args []Value) (Value, error) {
	if args[0].primitive() {
		return Str(args[0].Text()), nil
	}
	separator := ","
	if len(args) > 1 && args[1].primitive() {
		separator = args[1].Text()
	}
	var b textBuilder
	for i, item := range args[0].Items() {
		if i > 0 {
			b.add(ev, separator)
		}
		b.add(ev, item.Text())
		if b.err != nil {
			return Value{}, b.err
		}
	}
	return Str(b.text.String()), nil
}

// textBuilder makes a text within the budget of an evaluation. Once err is set, add does nothing.
type textBuilder struct {
	text strings.Builder
	err  error
}

func (b *textBuilder) add(ev *evaluator, s string) {
	if b.err == nil {
		b.err = ev.read(len(s))
	}
	if b.err == nil {
		b.err = ev.memory(len(s))
	}
	if b.err == nil {
		b.text.WriteString(s)
	}
}

// format replaces {0}, {1}, … by the texts of the arguments; {{ and }} stand for braces.
func format(ev *evaluator, args []Value) (Value, error) {
	text := args[0].Text()
	var b textBuilder
	rest := text
	for b.err == nil {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			b.add(ev, rest)
			break
		}
		b.add(ev, rest[:i])
		brace := rest[i]
		rest = rest[i+1:]
		if rest != "" && rest[0] == brace {
			b.add(ev, rest[:1])
			rest = rest[1:]
			continue
		}
		if brace == '}' {
			return Value{}, invalidFormat(text)
		}
		arg, after, err := placeholder(text, rest, args[1:])
		if err != nil {
			return Value{}, err
		}
		b.add(ev, arg.Text())
		rest = after
	}
	if b.err != nil {
		return Value{}, b.err
	}
	return Str(b.text.String()), nil
}

// placeholder reads "0}" from the start of rest, and returns the argument it means and what follows.
func placeholder(text, rest string, args []Value) (Value, string, error) {
	n := countDigits(rest)
	i, err := strconv.ParseUint(rest[:n], 10, 8) // the runner counts arguments in a byte
	if err != nil || n == len(rest) || rest[n] != '}' && rest[n] != ':' {
		return Value{}, "", invalidFormat(text)
	}
	if i >= uint64(len(args)) {
		return Value{}, "", errors.New("The following format string references more arguments than were supplied: " + text)
	}
	if rest[n] == '}' {
		return args[i], rest[n+1:], nil
	}
	end := specifiersEnd(rest, n+1)
	switch {
	case end < 0:
		return Value{}, "", invalidFormat(text)
	case end == n+1:
		return args[i], rest[end+1:], nil
	default: // only dates have them, and the language has no dates
		return Value{}, "", errors.New("The format specifiers '" + strings.ReplaceAll(rest[n+1:end], "}}", "}") +
			"' are not valid for objects of type '" + args[i].Kind().String() + "'")
	}
}

// specifiersEnd returns the offset of the brace that ends the format specifiers at pos, or -1. Two braces are not an end.
func specifiersEnd(text string, pos int) int {
	for pos < len(text) {
		i := strings.IndexByte(text[pos:], '}')
		if i < 0 {
			break
		}
		if pos += i; !strings.HasPrefix(text[pos:], "}}") {
			return pos
		}
		pos += 2
	}
	return -1
}

func invalidFormat(text string) error {
	return errors.New("The following format string is invalid: " + text)
}

// toJSON prints any value as JSON, indented.
func toJSON(ev *evaluator, args []Value) (Value, error) {
	w := jsonWriter{indent: true, ev: ev}
	if err := w.value(args[0], 0); err != nil {
		return Value{}, err
	}
	return Str(string(w.out)), nil
}

// fromJSON reads a value from its JSON.
func fromJSON(ev *evaluator, args []Value) (Value, error) {
	text := args[0].Text()
	if err := ev.read(len(text)); err != nil {
		return Value{}, err
	}
	if trimSpace(text) == "" {
		return Value{}, errors.New("empty input")
	}
	v, err := readJSON(text, &ev.bytes)
	if err != nil {
		return Value{}, fmt.Errorf("Error parsing JSON when evaluating fromJson: %w", err)
	}
	return v, nil
}
