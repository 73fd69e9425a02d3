package runner

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// npmGlob is the version of GitHub's package that TestHashFilesDifferential compares with.
const npmGlob = "@actions/glob@0.7.0"

// TestHashFilesDifferential compares hashFiles with GitHub's npm package, run by node, on made-up folders and patterns.
// It needs the package: in $TGR_NPM_DIR/node_modules, or with TGR_NETWORK=1 it is installed into the user's cache.
//
// Three differences are meant: a path that leads through a file is not there, and an error of lstat to the package. A link
// to nothing is left out here and an error there, unless links are followed; and ? stands for a character here, also
// for one that JavaScript counts as two: these are not generated.
func TestHashFilesDifferential(t *testing.T) {
	dir := npmDir(t)
	r := rand.New(rand.NewPCG(7, 26))
	type question struct {
		Dir      string `json:"dir"`
		Patterns string `json:"patterns"`
		Follow   bool   `json:"follow"`
	}
	var questions []question
	var input bytes.Buffer
	enc := json.NewEncoder(&input)
	for i := range 8 {
		workspace := filepath.Join(t.TempDir(), []string{"w", "w[x]*", "a b"}[i%3])
		follow := i%4 == 3
		plant(t, r, workspace, follow)
		for range 75 {
			q := question{workspace, hashPatterns(r, workspace), follow}
			questions = append(questions, q)
			if err := enc.Encode(q); err != nil {
				t.Fatal(err)
			}
		}
	}
	home := t.TempDir()
	cmd := exec.Command("node", filepath.Join("testdata", "hashfiles.mjs"), dir)
	cmd.Env = append(os.Environ(), "HOME="+home)
	cmd.Stdin, cmd.Stderr = &input, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("node: ", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	hashes := 0
	for _, q := range questions {
		if !lines.Scan() {
			t.Fatal("node answered too few lines")
		}
		var want struct{ Hash, Error string }
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(want.Error, "ENOTDIR") {
			continue
		}
		got, err := hashHere(q.Patterns, q.Dir, home, q.Follow)
		if (err != nil) != (want.Error != "") || got != want.Hash {
			t.Errorf("%s: %q, follow %v:\n got %s, %v\nwant %s, %s", q.Dir, q.Patterns, q.Follow, got, err, want.Hash, want.Error)
		}
		if got != "" {
			hashes++
		}
	}
	t.Logf("%d questions, %d of them with files", len(questions), hashes)
	if hashes < len(questions)/4 {
		t.Errorf("only %d of %d questions were about any files", hashes, len(questions))
	}
}

// hashHere does what hashFiles does, without a machine.
func hashHere(patterns, workspace, home string, follow bool) (string, error) {
	g, err := parseGlobs([]string{patterns}, workspace, home)
	if err != nil || len(g) == 0 {
		return "", err
	}
	argv := g.find(follow)
	list, _ := exec.Command(argv[0], argv[1:]...).Output() // its status speaks of folders that are not there
	total, n := sha256.New(), 0
	for _, f := range g.choose(strings.Split(string(list), "\x00"), workspace) {
		if data, err := os.ReadFile(f); err == nil { // not a link to a folder
			sum := sha256.Sum256(data)
			total.Write(sum[:])
			n++
		}
	}
	if n == 0 {
		return "", nil
	}
	return hex.EncodeToString(total.Sum(nil)), nil
}

// plantNames are names of files and folders.
func plantNames() []string {
	return []string{"a", "b", "ab", "abc", "a-b", "a.txt", "b.txt", ".h", ".h.txt", "B", "a b", "[x]", "x*", "ä", "1", "go.sum", "c"}
}

// plant makes a folder of files, folders and links.
func plant(t *testing.T, r *rand.Rand, dir string, follow bool) {
	t.Helper()
	names := plantNames()
	folders := []string{dir}
	files := []string{}
	for i := range 60 {
		parent := folders[r.IntN(len(folders))]
		path := filepath.Join(parent, names[r.IntN(len(names))])
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		var err error
		switch kind := r.IntN(12); {
		case kind < 4 && strings.Count(path[len(dir):], "/") < 4:
			err = os.Mkdir(path, 0o755)
			folders = append(folders, path)
		case kind == 4 && len(files) > 0:
			err = os.Symlink(files[r.IntN(len(files))], path)
		case kind == 5:
			err = os.Symlink(folders[r.IntN(len(folders))], path)
		case kind == 6 && follow:
			err = os.Symlink("nowhere", path)
		default:
			err = os.WriteFile(path, fmt.Append(nil, i), 0o644)
			files = append(files, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// hashPatterns are some lines of patterns.
func hashPatterns(r *rand.Rand, workspace string) string {
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	names := plantNames()
	wild := []string{"*", "**", "?", "a*", "*b*", "??", "*.txt", "**.txt", "***", "[ab]", "[!a]", "[^a]*", "[a-c]*", "[a-", "[]a]", "[!]a]*", "[[:alpha:]]",
		"[[:alpha:]-b]*", "[a-[:digit:]]", "[z-a]", "[a-a]", "[b]", `\a`, `\[x\]`, "[[]x]", `[\]a]`, "x[*]", `a\`, "a[", "{a,b}", "+(a|b)", "@(a)", ".*", "[.]h", `\.h`, "[A-Z]", "[a\\-c]*", "[-a]", "[a-]"}
	var lines []string
	for range 1 + r.IntN(3) {
		var segments []string
		for range 1 + r.IntN(3) {
			if r.IntN(3) == 0 {
				segments = append(segments, pick(names))
			} else {
				segments = append(segments, pick(wild))
			}
		}
		line := strings.Join(segments, pick([]string{"/", "/", "/", "/", "//", "/**/"}))
		switch r.IntN(12) {
		case 0:
			line += "/"
		case 1:
			line = "./" + line
		case 2:
			line = strings.NewReplacer("[", "[[]", "*", "[*]").Replace(workspace) + "/" + line
		case 3:
			line = pick([]string{"~/", "../", "/nowhere/", "a/./", "#", "~", "!", "a/../"}) + line
		}
		if len(lines) > 0 && r.IntN(2) == 0 {
			line = pick([]string{"!", "! ", "!!", "!"}) + line
		}
		lines = append(lines, pick([]string{"", "", "  "})+line)
	}
	return strings.Join(lines, "\n")
}

// npmDir returns a folder whose node_modules holds the package, or skips the test.
func npmDir(t *testing.T) string {
	t.Helper()
	const skipped = "SKIPPED, NOT COMPARED WITH GITHUB'S HASHFILES: "
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip(skipped + "no node on this machine")
	}
	dir := os.Getenv("TGR_NPM_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(skipped, err)
		}
		dir = filepath.Join(cache, "tgr", "npm")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@actions", "glob", "package.json")); err == nil {
		return dir
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skip(skipped + "set TGR_NETWORK=1 or TGR_NPM_DIR to a folder with " + npmGlob)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", dir, npmGlob).CombinedOutput()
	if err != nil {
		t.Fatalf("npm install %s: %v\n%s", npmGlob, err, out)
	}
	return dir
}
