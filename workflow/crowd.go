package workflow

import "bytes"

// crowded reports whether a file surely holds more nodes than there may be, so that the YAML parser, which builds all
// of them before anybody can count, need not begin. It looks at the indicators alone: of odd files it counts a few
// nodes too many or too few, for which a quarter is added to the limit; what it lets pass is counted again by
// document.convert. A node takes at least one byte.
func crowded(src []byte, limit int) bool {
	if len(src) <= limit {
		return false
	}
	limit += limit / 4
	c := crowd{src: src, limit: limit}
	for c.at < len(src) && c.nodes <= limit {
		c.line()
	}
	return c.nodes > limit
}

// crowd counts the nodes of a file.
type crowd struct {
	src   []byte
	at    int // the place that is looked at
	limit int
	nodes int
	flow  int // how many flow collections are open
}

// line counts the nodes that begin in a line, and in those that its quotes, brackets and block scalars take up.
func (c *crowd) line() {
	start := c.at
	c.blanks()
	parent := c.at - start // a block scalar's lines are indented by more
	for c.flow == 0 && c.at < len(c.src) && bytes.IndexByte([]byte("-?:"), c.src[c.at]) >= 0 && c.ends(c.at+1) {
		c.nodes++
		parent = c.at - start
		c.at++
		c.blanks()
	}
	key := c.at - start
	token := true // a scalar, or whatever it is, would begin here
	for c.at < len(c.src) && c.src[c.at] != '\n' && c.nodes <= c.limit {
		switch b := c.src[c.at]; {
		case b == '#' && c.ends(c.at-1):
			c.skipLine()
			return
		case c.ends(c.at):
			c.at++
			continue
		case token && (b == '"' || b == '\''):
			c.quoted(b)
			token = false
			continue
		case token && (b == '|' || b == '>') && c.flow == 0:
			c.skipLine()
			c.blockScalar(parent)
			return
		case b == ':' && c.flow == 0 && c.ends(c.at+1):
			c.nodes += 2 // the key, and a value, if only null
			token, parent = true, key
		case b == ':' && c.flow > 0:
			c.nodes++ // the comma counts the other one
			token = true
		case c.flow > 0 && b == ',':
			c.nodes++
			token = true
		case (token || c.flow > 0) && (b == '[' || b == '{'):
			c.flow++ // its place has been counted
			token = true
		case c.flow > 0 && (b == ']' || b == '}'):
			c.flow--
		case b == '&' || b == '!': // stand before what they belong to
			for !c.ends(c.at) {
				c.at++
			}
			continue
		default:
			token = false
		}
		c.at++
	}
	c.at++
}

// ends reports whether there is no word at i.
func (c *crowd) ends(i int) bool {
	return i < 0 || i >= len(c.src) || c.src[i] == ' ' || c.src[i] == '\t' || c.src[i] == '\n' || c.src[i] == '\r'
}

func (c *crowd) blanks() {
	for c.at < len(c.src) && (c.src[c.at] == ' ' || c.src[c.at] == '\t') {
		c.at++
	}
}

func (c *crowd) skipLine() {
	if n := bytes.IndexByte(c.src[c.at:], '\n'); n >= 0 {
		c.at += n + 1
	} else {
		c.at = len(c.src)
	}
}

// quoted goes behind the closing quote.
func (c *crowd) quoted(quote byte) {
	for c.at++; c.at < len(c.src); c.at++ {
		switch b := c.src[c.at]; {
		case b == '\\' && quote == '"':
			c.at++
		case b == quote && quote == '\'' && c.at+1 < len(c.src) && c.src[c.at+1] == quote:
			c.at++
		case b == quote:
			c.at++
			return
		}
	}
}

// blockScalar skips the lines that are empty, or indented by more than their parent.
func (c *crowd) blockScalar(parent int) {
	for c.at < len(c.src) {
		start := c.at
		c.blanks()
		if c.at < len(c.src) && c.src[c.at] != '\n' && c.src[c.at] != '\r' && c.at-start <= parent {
			c.at = start
			return
		}
		c.skipLine()
	}
}
