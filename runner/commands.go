package runner

import (
	"strings"
	"unicode/utf8"
)

// command is a workflow command that a process printed: `::name key=value::data` or `##[name key=value]data`.
type command struct {
	name  string // in lower case
	props map[string]string
	data  string
	raw   string // the line as it was printed
}

// The registered commands. Anything else in that shape is plain text.
const (
	cmdDebug         = "debug"
	cmdNotice        = "notice"
	cmdWarning       = "warning"
	cmdError         = "error"
	cmdGroup         = "group"
	cmdEndGroup      = "endgroup"
	cmdAddMask       = "add-mask"
	cmdAddMatcher    = "add-matcher"
	cmdRemoveMatcher = "remove-matcher"
	cmdStop          = "stop-commands"
	cmdEcho          = "echo"
	cmdSetOutput     = "set-output"
	cmdSaveState     = "save-state"
	cmdSetEnv        = "set-env"
	cmdAddPath       = "add-path"
	cmdRepoPath      = "internal-set-repo-path"
)

// registeredCommand reports whether name, in lower case, is a command.
func registeredCommand(name string) bool {
	switch name {
	case cmdDebug, cmdNotice, cmdWarning, cmdError, cmdGroup, cmdEndGroup, cmdAddMask, cmdAddMatcher,
		cmdRemoveMatcher, cmdStop, cmdEcho, cmdSetOutput, cmdSaveState, cmdSetEnv, cmdAddPath, cmdRepoPath:
		return true
	}
	return false
}

// maxProps bounds the properties of one command; a command has at most six.
const maxProps = 64

// mayBeCommand is a quick look at a line: false is certain.
func mayBeCommand(line string) bool {
	if line == "" {
		return false
	}
	plain := line[0] > ' ' && line[0] < utf8.RuneSelf && line[0] != ':'
	return !plain || strings.Contains(line, "##[")
}

// parseCommand reads one line as a command of either syntax; ok is false for plain text.
// registered says which names are commands.
func parseCommand(line string, registered func(string) bool) (c command, ok bool) {
	if c, ok = parseColons(line, registered); ok {
		return c, true
	}
	return parseBrackets(line, registered)
}

// parseColons reads `::name key=value,key=value::data`, which must be the first thing in the line.
func parseColons(line string, registered func(string) bool) (command, bool) {
	rest, ok := strings.CutPrefix(strings.TrimLeft(line, " \t\v\f\r\n\u0085\u00a0"), "::")
	if !ok {
		return command{}, false
	}
	return form{"::", ",", unescapeProperty, unescapeData}.parse(line, rest, registered)
}

// parseBrackets reads `##[name key=value;key=value]data`, which may have anything before it.
func parseBrackets(line string, registered func(string) bool) (command, bool) {
	_, rest, ok := strings.Cut(line, "##[")
	if !ok {
		return command{}, false
	}
	return form{"]", ";", unescapeLegacy, unescapeLegacy}.parse(line, rest, registered)
}

// form is what the two ways to write a command differ in, behind their beginning.
type form struct {
	end      string // of the name and the properties
	between  string // properties
	property func(string) string
	data     func(string) string
}

// parse reads what follows the beginning of a command.
func (f form) parse(line, rest string, registered func(string) bool) (command, bool) {
	head, data, ok := strings.Cut(rest, f.end)
	if !ok {
		return command{}, false
	}
	name, props, _ := strings.Cut(head, " ")
	name = strings.ToLower(name)
	if !registered(name) {
		return command{}, false
	}
	return command{name: name, props: parseProps(props, f.between, f.property), data: f.data(data), raw: line}, true
}

// parseProps reads key=value items. Keys are case-insensitive, items without a key or a value are dropped.
func parseProps(s, sep string, unescape func(string) string) map[string]string {
	props := map[string]string{}
	for s != "" && len(props) < maxProps {
		var item string
		item, s, _ = strings.Cut(s, sep)
		key, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		if key = strings.ToLower(strings.TrimSpace(key)); key == "" || value == "" {
			continue
		}
		props[key] = unescape(value)
	}
	return props
}

// The escapes. "%25" comes last, so that what it yields is not unescaped again.

func unescapeData(s string) string {
	return unescape(s, "%0D", "\r", "%0A", "\n", "%25", "%")
}

func unescapeProperty(s string) string {
	return unescape(s, "%0D", "\r", "%0A", "\n", "%3A", ":", "%2C", ",", "%25", "%")
}

func unescapeLegacy(s string) string {
	return unescape(s, "%3B", ";", "%0D", "\r", "%0A", "\n", "%5D", "]", "%25", "%")
}

func unescape(s string, pairs ...string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	for i := 0; i < len(pairs); i += 2 {
		s = strings.ReplaceAll(s, pairs[i], pairs[i+1])
	}
	return s
}
