package workflow

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/expr"
	"go.yaml.in/yaml/v4"
)

// setScalar reads a scalar by YAML 1.2's core schema, as GitHub does: on, yes and no are strings, 0o17 and 0x1F
// are numbers, 010 is ten.
func (n *node) setScalar(from *yaml.Node) error {
	n.kind, n.text = kindString, from.Value
	quoted := from.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	n.plain = !quoted
	if from.Style&yaml.TaggedStyle != 0 {
		return n.setTagged(from)
	}
	if quoted {
		return nil
	}
	switch {
	case isNull(n.text):
		n.kind, n.text = kindNull, ""
	case isTrue(n.text):
		n.kind, n.bool, n.text = kindBool, true, "true"
	case isFalse(n.text):
		n.kind, n.text = kindBool, "false"
	default:
		if f, ok := parseNumber(n.text); ok {
			n.setNumber(f)
		}
	}
	return nil
}

func (n *node) setNumber(f float64) {
	n.kind, n.number, n.text = kindNumber, f, expr.Num(f).Text()
}

// setTagged reads a scalar with an explicit tag.
func (n *node) setTagged(from *yaml.Node) error {
	value, tag := from.Value, from.ShortTag()
	switch tag {
	case "!!str", "!":
	case "!!null":
		if !isNull(value) {
			return fmt.Errorf("'%s' is not null, as its tag says", value)
		}
		n.kind, n.text = kindNull, ""
	case "!!bool":
		if !isTrue(value) && !isFalse(value) {
			return fmt.Errorf("'%s' is not a boolean, as its tag says", value)
		}
		n.kind, n.bool = kindBool, isTrue(value)
		n.text = strconv.FormatBool(n.bool)
	case "!!int", "!!float":
		f, ok := parseNumber(value)
		if !ok || tag == "!!int" && strings.ContainsAny(value, ".eE") && !strings.HasPrefix(value, "0x") {
			return fmt.Errorf("'%s' is not a number, as its tag says", value)
		}
		n.setNumber(f)
	default:
		return fmt.Errorf("the tag '%s' is not supported", from.Tag)
	}
	return nil
}

func isNull(s string) bool {
	return s == "" || s == "~" || s == "null" || s == "Null" || s == "NULL"
}

func isTrue(s string) bool { return s == "true" || s == "True" || s == "TRUE" }

func isFalse(s string) bool { return s == "false" || s == "False" || s == "FALSE" }

// parseNumber reads the numbers of the core schema: decimal integers and floats, 0o and 0x, .inf and .nan.
func parseNumber(s string) (float64, bool) {
	if s == "" || len(s) > 4096 {
		return 0, false
	}
	if c := s[0]; c != '-' && c != '+' && c != '.' && (c < '0' || c > '9') {
		return 0, false
	}
	if f, ok := parseSpecial(s); ok {
		return f, true
	}
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0o") {
		return parseRadix(s)
	}
	if !isDecimal(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}

func parseSpecial(s string) (float64, bool) {
	switch s {
	case ".nan", ".NaN", ".NAN":
		return math.NaN(), true
	case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF":
		return math.Inf(1), true
	case "-.inf", "-.Inf", "-.INF":
		return math.Inf(-1), true
	}
	return 0, false
}

func parseRadix(s string) (float64, bool) {
	base := 16.0
	if s[1] == 'o' {
		base = 8
	}
	if len(s) == 2 {
		return 0, false
	}
	f := 0.0
	for _, c := range []byte(s[2:]) {
		var d float64
		switch {
		case c >= '0' && c <= '9':
			d = float64(c - '0')
		case c >= 'a' && c <= 'f':
			d = float64(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = float64(c-'A') + 10
		default:
			return 0, false
		}
		if d >= base {
			return 0, false
		}
		f = f*base + d
	}
	return f, true
}

// isDecimal matches [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
func isDecimal(s string) bool {
	digits := func() int {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		s = s[i:]
		return i
	}
	if s[0] == '-' || s[0] == '+' {
		s = s[1:]
	}
	whole := digits()
	if strings.HasPrefix(s, ".") {
		s = s[1:]
		if digits() == 0 && whole == 0 {
			return false
		}
	} else if whole == 0 {
		return false
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '-' || s[0] == '+') {
			s = s[1:]
		}
		if digits() == 0 {
			return false
		}
	}
	return s == ""
}
