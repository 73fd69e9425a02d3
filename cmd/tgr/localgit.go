package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// plainRepo is what the files of an ordinary repository say without git, of which every process takes as long as a short
// step: one that a working tree has below its top, in .git, with refs in files.
type plainRepo struct {
	top    string
	ref    string // that HEAD names
	origin string // the URL of the remote of that name; "": there is none
	refs   string // as git for-each-ref would list main, master and origin's HEAD
}

// readPlainRepo reads the repository that dir is in; ok is false where anything about it is unusual, and git has to
// be asked.
func readPlainRepo(dir string) (r plainRepo, ok bool) {
	for _, prefix := range []string{"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_CEILING", "GIT_CONFIG", "GIT_NAMESPACE", "GIT_DISCOVERY"} {
		if slices.ContainsFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, prefix) }) {
			return r, false
		}
	}
	dir, err := filepath.EvalSymlinks(dir) // git shows no links
	if err != nil {
		return r, false
	}
	for r.top = dir; ; r.top = filepath.Dir(r.top) {
		if info, err := os.Lstat(filepath.Join(r.top, ".git")); err == nil {
			if !info.IsDir() {
				return r, false // a link, or the file of a worktree or submodule
			}
			break
		}
		if r.top == filepath.Dir(r.top) {
			return r, false
		}
	}
	git := filepath.Join(r.top, ".git")
	if r.ref, ok = symref(git, "HEAD"); !ok {
		return r, false
	}
	if r.origin, ok = plainOrigin(filepath.Join(git, "config")); !ok {
		return r, false
	}
	r.refs, ok = plainRefs(git)
	return r, ok
}

// symref reads a ref that names another.
func symref(git, name string) (string, bool) {
	data, err := os.ReadFile(filepath.Join(git, filepath.FromSlash(name)))
	if err != nil || len(data) > 4096 {
		return "", false
	}
	ref, ok := strings.CutPrefix(string(data), "ref: ")
	ref = strings.TrimSpace(ref)
	return ref, ok && strings.HasPrefix(ref, "refs/")
}

// plainOrigin reads remote.origin.url of a configuration file; ok is false where that file says more than we understand.
func plainOrigin(file string) (url string, ok bool) {
	f, err := os.Open(file)
	if err != nil {
		return "", false
	}
	defer f.Close()
	section := ""
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return url, lines.Err() == nil
		}
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.ToLower(strings.TrimSuffix(name, "]"))
			if strings.HasPrefix(section, "include") || !strings.HasSuffix(line, "]") {
				return "", false
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		switch {
		case section == "core" && key == "worktree", section == "extensions" && key != "objectformat":
			return "", false
		case section == `remote "origin"` && key == "url":
			if url != "" || strings.ContainsAny(value, `"\;#`) {
				return "", false
			}
			url = value
		}
	}
}

// plainRefs lists main, master and origin's HEAD, where they are, as git for-each-ref does.
func plainRefs(git string) (string, bool) {
	packed, err := os.ReadFile(filepath.Join(git, "packed-refs"))
	if err != nil && !os.IsNotExist(err) || len(packed) > 1<<20 {
		return "", false
	}
	inPack := strings.Split(string(packed), "\n")
	var out strings.Builder
	for _, ref := range []string{"refs/heads/main", "refs/heads/master"} {
		_, err := os.Stat(filepath.Join(git, filepath.FromSlash(ref)))
		if err == nil || slices.ContainsFunc(inPack, func(l string) bool { return strings.HasSuffix(l, " "+ref) }) {
			out.WriteString(ref + " \n")
		}
	}
	const head = "refs/remotes/origin/HEAD"
	if target, ok := symref(git, head); ok {
		out.WriteString(head + " " + target + "\n")
	}
	return out.String(), true
}
