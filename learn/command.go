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

// cachePath is where a tool keeps what it would otherwise fetch or build again; "" where nothing is known of it.
func cachePath(command string) string {
	for _, c := range []struct{ prefix, path string }{
		{"go mod", "~/go/pkg/mod"}, {"go ", "~/.cache/go-build, ~/go/pkg/mod"}, {"npm ", "~/.npm"}, {"yarn", "~/.cache/yarn"},
		{"pnpm", "~/.local/share/pnpm/store"}, {"pip", "~/.cache/pip"}, {"python -m pip", "~/.cache/pip"}, {"uv ", "~/.cache/uv"},
		{"cargo ", "~/.cargo/registry, target"}, {"mvn", "~/.m2/repository"}, {"gradle", "~/.gradle/caches"}, {"gradlew", "~/.gradle/caches"},
		{"bundle", "vendor/bundle"}, {"composer", "~/.cache/composer"}, {"dotnet", "~/.nuget/packages"},
	} {
		for part := range strings.SplitSeq(command, " && ") {
			if strings.HasPrefix(part+" ", c.prefix) {
				return c.path
			}
		}
	}
	return ""
}
