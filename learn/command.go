package learn

import (
	"path"
	"slices"
	"strings"
)

const maxCommand = 80 // bytes of a command's template

// Template is what a step runs with what varies taken out: tool and subcommand of its first few commands, "npm ci && npm
// test", or "uses actions/checkout". Both texts come from workflows and are hostile; the result has at most 80 bytes.
// "" is the template of nothing.
func Template(run, uses string) string {
	if uses != "" {
		name, _, _ := strings.Cut(uses, "@")
		return cut("uses "+strings.Join(strings.Fields(visible(name)), " "), maxCommand)
	}
	if len(run) > 4096 {
		run = run[:4096]
	}
	var found []string
	aside := ""
	split := func(r rune) bool { return strings.ContainsRune("\n;|&", r) }
	for part := range strings.SplitSeq(strings.Join(strings.FieldsFunc(strings.ReplaceAll(run, "\\\n", " "), split), "\n"), "\n") {
		t, real := commandOf(strings.Fields(visible(part)))
		if !real {
			aside = firstOf(aside, t)
			continue
		}
		if !slices.Contains(found, t) {
			found = append(found, t)
		}
		if len(found) == 3 {
			break
		}
	}
	if len(found) == 0 {
		return cut(aside, maxCommand)
	}
	return cut(strings.Join(found, " && "), maxCommand)
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// commandOf is the template of one command. real is false for what only prepares or says something.
func commandOf(words []string) (t string, real bool) {
	for len(words) > 0 && (slices.Contains([]string{"sudo", "time", "exec", "env", "then", "do", "else", "if", "!"}, words[0]) || isAssignment(words[0])) {
		words = words[1:]
	}
	if len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return "", false
	}
	tool := maskRuns(path.Base(strings.Trim(words[0], `"'()`)))
	if slices.Contains([]string{"set", "cd", "export", "echo", "fi", "done", "for", "while", "[", "[[", "true", ":", "mkdir", "printf", "shopt", "source", "."}, tool) {
		return tool, false
	}
	out := []string{tool}
	for i, w := range words[1:] {
		if w == "-m" && i+2 < len(words) && strings.HasPrefix(tool, "python") {
			return strings.Join([]string{tool, "-m", maskRuns(words[i+2])}, " "), true
		}
		if len(w) > 24 || !isLower(w) {
			break
		}
		out = append(out, w)
		if !slices.Contains([]string{"run", "compose", "tool", "mod", "exec"}, w) {
			break
		}
	}
	return strings.Join(out, " "), true
}

func isAssignment(w string) bool {
	name, _, ok := strings.Cut(w, "=")
	return ok && name != "" && strings.IndexFunc(name, func(r rune) bool { return !(r == '_' || r < 0x80 && isWordByte(byte(r))) }) < 0
}

// isLower reports whether a word can be a subcommand.
func isLower(w string) bool {
	for i := range len(w) {
		if c := w[i]; !(c >= 'a' && c <= 'z' || i > 0 && (c == '-' || c == ':' || c == '_')) {
			return false
		}
	}
	return w != ""
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "")
	}
	return strings.ToValidUTF8(s[:n], "")
}

// cacheable is a kind of command that fetches or builds what a cache can keep.
type cacheable struct {
	commands string // templates, comma-separated
	path     string // what is to be kept
	installs bool   // it does nothing else: those of one line do the same in different ways
}

// cacheables lists what is known, without a claim to be whole.
func cacheables() []cacheable {
	return []cacheable{
		{"go mod", "~/go/pkg/mod", true},
		{"go build,go test,go vet,go run,go install,go generate", "~/.cache/go-build, ~/go/pkg/mod", false},
		{"npm ci,npm install,npm i", "~/.npm", true},
		{"yarn,yarn install", "~/.cache/yarn", true},
		{"pnpm install,pnpm i", "~/.local/share/pnpm/store", true},
		{"pip install,pip<n> install,python -m pip,python<n> -m pip", "~/.cache/pip", true},
		{"uv sync,uv pip,uv run", "~/.cache/uv", false},
		{"cargo build,cargo test,cargo check,cargo clippy,cargo run,cargo bench", "~/.cargo/registry, target", false},
		{"mvn,mvnw", "~/.m2/repository", false},
		{"gradle,gradlew", "~/.gradle/caches", false},
		{"bundle install,bundle", "vendor/bundle", true},
		{"composer install,composer update", "~/.cache/composer", true},
		{"dotnet restore,dotnet build,dotnet test", "~/.nuget/packages", false},
	}
}

// is reports whether a command without others is of the kind. A template of one word is the tool, whatever it is called with.
func (c cacheable) is(command string) bool {
	for name := range strings.SplitSeq(c.commands, ",") {
		if command == name || !c.installs && !strings.Contains(name, " ") && strings.HasPrefix(command, name+" ") {
			return true
		}
	}
	return false
}

// cachePath is where a command keeps what it would otherwise fetch or build again; "" where nothing is known of it.
func cachePath(command string) string {
	for _, c := range cacheables() {
		for part := range strings.SplitSeq(command, " && ") {
			if c.is(part) {
				return c.path
			}
		}
	}
	return ""
}

// interchangeable reports whether two commands surely do the same: they install what the project needs, with one tool.
func interchangeable(a, b string) bool {
	return a != b && slices.ContainsFunc(cacheables(), func(c cacheable) bool { return c.installs && c.is(a) && c.is(b) })
}
