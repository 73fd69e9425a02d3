package learn

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMask(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"2026-11-24T03:11:02.123Z error: 3 tests failed in 0.53s", "error: <n> tests failed in <n>s"},
		{"12:00:01 panic: index out of range [5] with length 3", "panic: index out of range [<n>] with length <n>"},
		{"\x1b[31mFAIL\x1b[0m ./src/util/parse_test.go:12:3: bad", "FAIL <dir>/parse_test.go:<n>:<n>: bad"},
		{"at Object.<anonymous> (/home/u1/x/test/a.js:3:4)", "at Object.<anonymous> (<dir>/a.js:<n>:<n>)"},
		{"commit 3f2a9c1d77 by 0x1f4a id deadbeefcafe0123456789", "commit <id> by <n> id <id>"},
		{"550e8400-e29b-41d4-a716-446655440000 gone", "<id> gone"},
		{"connect ECONNREFUSED 10.0.0.12:5432", "connect ECONNREFUSED <n>:<n>"},
		{"go1.26.1 node v20.11.0", "go<n> node v<n>"},
		{"a\x00b\u0085c \xff d", "a b c d"},
		{"see https://example.com/a/b", "see https://example.com/a/b"},
		{"   ", ""},
	} {
		if got := strings.Join(mask(tt.line), " "); got != tt.want {
			t.Errorf("mask(%q)\n got %q\nwant %q", tt.line, got, tt.want)
		}
	}
}

// What differs only in what varies is one line; what says another thing is another.
func TestMaskTellsApart(t *testing.T) {
	same := [][2]string{
		{"ok 17 took 3ms in /tmp/go-build123/x.go:1", "ok 4 took 99ms in /var/tmp/b9/x.go:77"},
		{"Error 0xdeadbeef at 3.14", "Error 0x12ab at 2.71"},
	}
	for _, s := range same {
		if a, b := strings.Join(mask(s[0]), " "), strings.Join(mask(s[1]), " "); a != b {
			t.Errorf("%q and %q differ", a, b)
		}
	}
	if a, b := strings.Join(mask("cannot find socket"), " "), strings.Join(mask("cannot find ledger"), " "); a == b {
		t.Errorf("%q stands for both", a)
	}
}

func TestTemplate(t *testing.T) {
	for _, tt := range []struct{ run, uses, want string }{
		{"go test ./...", "", "go test"},
		{"npm ci\nnpm run build -- --prod\nnpm test", "", "npm ci && npm run build && npm test"},
		{"set -e\ncd x && sudo FOO=1 /usr/bin/cargo build --release", "", "cargo build"},
		{"python3 -m pytest -q", "", "python<n> -m pytest"},
		{"docker compose up -d", "", "docker compose up"},
		{"echo hello", "", "echo"},
		{"make \\\n  check", "", "make check"},
		{"./gradlew :app:test", "", "gradlew"},
		{"if [ -e x ]; then make; fi", "", "make"},
		{"a; b; c; d; e", "", "a && b && c"},
		{"", "actions/checkout@v4", "uses actions/checkout"},
		{"\n# nothing\n", "", ""},
	} {
		if got := Template(tt.run, tt.uses); got != tt.want {
			t.Errorf("Template(%q, %q) = %q, want %q", tt.run, tt.uses, got, tt.want)
		}
	}
}

// A cache is suggested for what fetches or builds, and nothing else of the same tool; in place of a command only what does the
// same.
func TestCacheable(t *testing.T) {
	for run, want := range map[string]string{
		"npm ci && npm test": "~/.npm", "npm test": "", "npm run build": "", "go test ./...": "~/.cache/go-build, ~/go/pkg/mod", "go version": "",
		"make": "", "python3 -m pip install -r requirements.txt": "~/.cache/pip", "pip3 install .": "~/.cache/pip", "python3 -m pytest": "",
		"./gradlew check": "~/.gradle/caches", "mvn -B verify": "~/.m2/repository", "mvn verify": "~/.m2/repository", "mvnspecial": "",
		"bundle exec rake": "", "bundle install": "vendor/bundle", "yarn": "~/.cache/yarn", "yarn test": "",
	} {
		if got := cachePath(Template(run, "")); got != want {
			t.Errorf("of %q, which is %q: %q, want %q", run, Template(run, ""), got, want)
		}
	}
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"npm ci", "npm install", true}, {"npm install", "npm ci", true}, {"npm ci", "npm ci", false}, {"npm ci", "npm test", false}, {"go vet", "go test", false},
		{"npm ci", "yarn install", false}, {"npm ci && npm test", "npm ci", false}, {"make", "make check", false},
	} {
		if got := interchangeable(tt.a, tt.b); got != tt.want {
			t.Errorf("%q in place of %q: %t", tt.b, tt.a, got)
		}
	}
}

// Any bytes: bounded, valid, the same each time, and masked words stay what they are.
func FuzzMask(f *testing.F) {
	for _, s := range []string{"", "\x1b[", "\x1b[31", "/////", "a/b/c:1", "0x", strings.Repeat("9.", 700), strings.Repeat("x ", 2000), "é\xff\xfe1", "'/a'(/b", "<*> <n> <id>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words := mask(line)
		if len(words) > maxTokens {
			t.Fatalf("%d words", len(words))
		}
		for _, w := range words {
			if !utf8.ValidString(w) || w == "" || strings.ContainsAny(w, "\n\x1b\x00") || len(w) > 8*maxLine {
				t.Fatalf("the word %q of %q", w, line)
			}
			if strings.ContainsAny(w, "0123456789") {
				t.Fatalf("%q is left of %q", w, line)
			}
		}
		if tpl := Template(line, ""); len(tpl) > maxCommand || !utf8.ValidString(tpl) {
			t.Fatalf("the template %q", tpl)
		}
	})
}

// Any lines: the tree keeps its bounds, finds again what it made, and says the same when it was stored in between.
func FuzzDrain(f *testing.F) {
	f.Add("a b c\na b d\nx 1\nx 2\n")
	f.Add("error: a\nerror: b\n\n<*> <*>\n<*> b")
	f.Fuzz(func(t *testing.T, text string) {
		one, two := newDrain(50), newDrain(50)
		for i, line := range strings.Split(text, "\n") {
			words := mask(line)
			if len(words) == 0 {
				continue
			}
			a, _, _ := one.add(words, int64(i))
			b, _, _ := two.add(words, int64(i))
			if a.ID != b.ID || a.String() != b.String() {
				t.Fatalf("%q and %q for %q", a, b, line)
			}
			if len(a.Words) != len(words) || one.byID[a.ID] != a {
				t.Fatalf("%q is the template of %q", a, line)
			}
			one.trim()
			two.trim()
			if len(one.byID) > 50 {
				t.Fatalf("%d templates", len(one.byID))
			}
			n := 0
			for _, list := range one.leaves {
				if n += len(list); len(list) == 0 || len(list) > maxLeaf {
					t.Fatalf("a leaf of %d", len(list))
				}
			}
			if n != len(one.byID) {
				t.Fatalf("%d templates in leaves, %d by id", n, len(one.byID))
			}
		}
	})
}

// Lines made to be as costly as can be: nearly the same, in one leaf, of all the words there may be.
func TestHostileLinesCostLittle(t *testing.T) {
	d := newDrain(maxTemplates)
	for i := range 5000 {
		words := make([]string, maxTokens)
		for j := range words {
			words[j] = "error" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676%26)) + string(rune('a'+j%26))
		}
		words[0], words[1] = "x", "y"
		d.add(words, int64(i))
	}
	if n := len(d.leaves[pathOf(append([]string{"x", "y"}, make([]string, maxTokens-2)...))]); n != maxLeaf {
		t.Errorf("the leaf has %d templates, and may have %d", n, maxLeaf)
	}
}
