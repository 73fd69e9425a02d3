package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/runner"
)

const maxWorkflow = 1 << 20 // bytes that are read of a workflow file; the compiler refuses less

// localSource is the repository in a working tree, as it is now.
type localSource struct {
	dir    string // top of the working tree
	repo   tgr.Repo
	branch string
	head   string   // "" in a folder that is not a repository, or has no commit
	only   []string // workflow files to look at; nil: all
	log    *slog.Logger

	snapshot func() (string, string, error) // makes the commit that is checked out, once: its repository and SHA
	tmp      string
}

// openLocalSource looks at the repository that dir is in.
func openLocalSource(ctx context.Context, dir string, log *slog.Logger) (*localSource, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &localSource{dir: abs, log: log, branch: "main"}
	// One process for what several questions would ask: each costs as much as a step.
	out, err := s.git(ctx, nil, "rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD")
	if lines := strings.Fields(out); err == nil && len(lines) == 3 {
		s.dir, s.head = lines[0], lines[1]
		s.branch = strings.TrimPrefix(lines[2], "refs/heads/")
	}
	origin, _ := s.git(ctx, nil, "config", "--get", "remote.origin.url") // none is no error
	s.repo = tgr.Repo{FullName: fullName(strings.TrimSpace(origin), s.dir), CloneURL: strings.TrimSpace(origin), DefaultBranch: "main"}
	once := sync.OnceValues(func() ([2]string, error) {
		repo, sha, err := s.commitTree(context.WithoutCancel(ctx))
		return [2]string{repo, sha}, err
	})
	s.snapshot = func() (string, string, error) {
		got, err := once()
		return got[0], got[1], err
	}
	return s, nil
}

// fullName is owner/name of a clone URL, or of a folder that has none.
func fullName(origin, dir string) string {
	p := origin
	if u, err := url.Parse(origin); err == nil && u.Host != "" {
		p = u.Path
	} else if _, after, ok := strings.Cut(origin, ":"); ok {
		p = after
	}
	p = strings.TrimSuffix(strings.Trim(p, "/"), ".git")
	parts := strings.Split(p, "/")
	if len(parts) >= 2 && parts[len(parts)-2] != "" {
		return path.Join(parts[len(parts)-2:]...)
	}
	return "local/" + filepath.Base(dir)
}

// Close removes what the source made.
func (s *localSource) Close() error {
	if s.tmp == "" {
		return nil
	}
	return os.RemoveAll(s.tmp)
}

func (s *localSource) event(name string) tgr.Event {
	ev := tgr.Event{Name: name, Repo: s.repo, Ref: "refs/heads/" + s.branch, SHA: s.head, HeadSHA: s.head, Actor: envOr("USER", "local")}
	if name == "pull_request" || name == "pull_request_target" {
		ev.Number, ev.Ref = 1, "refs/pull/1/merge"
		ev.HeadRef, ev.BaseRef = s.branch, s.repo.DefaultBranch
	}
	return ev
}

// choose turns -W into paths of workflow files.
func (s *localSource) choose(files []string) ([]string, error) {
	var out []string
	for _, f := range files {
		for _, p := range []string{f, filepath.Join(s.dir, f), filepath.Join(s.dir, workflowDir, f)} {
			if info, err := os.Stat(p); err == nil && !info.IsDir() {
				abs, err := filepath.Abs(p)
				if err != nil {
					return nil, err
				}
				out = append(out, abs)
				break
			}
		}
		if len(out) == 0 || !strings.HasSuffix(out[len(out)-1], filepath.Base(f)) {
			return nil, fmt.Errorf("-W %s: no such file, neither as it is nor in %s", f, filepath.Join(s.dir, workflowDir))
		}
	}
	return out, nil
}

// Fetch implements dispatch.Source: everything is here already.
func (s *localSource) Fetch(_ context.Context, ev tgr.Event) (tgr.Event, error) { return ev, nil }

// Workflows implements dispatch.Source.
func (s *localSource) Workflows(context.Context, tgr.Event) ([]dispatch.File, error) {
	paths := s.only
	if paths == nil {
		entries, err := os.ReadDir(filepath.Join(s.dir, workflowDir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if isWorkflow(path.Join(workflowDir, e.Name())) {
				paths = append(paths, filepath.Join(s.dir, workflowDir, e.Name()))
			}
		}
	}
	var out []dispatch.File
	for _, p := range paths {
		name, err := filepath.Rel(s.dir, p)
		if err != nil || strings.HasPrefix(name, "..") {
			name = p
		}
		f := dispatch.File{Path: filepath.ToSlash(name)}
		f.Data, f.Err = readBounded(p, maxWorkflow)
		out = append(out, f)
	}
	return out, nil
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// Changed implements dispatch.Source: what differs from the commit before, uncommitted changes included.
func (s *localSource) Changed(ctx context.Context, _ tgr.Event) ([]string, error) {
	if s.head == "" {
		return nil, nil
	}
	base := "HEAD~1"
	if _, err := s.git(ctx, nil, "rev-parse", "--verify", "-q", base); err != nil {
		base = "4b825dc642cb6eb9a060e54bf8d69288fbee4904" // git's name of the empty tree
	}
	diff, err := s.git(ctx, nil, "diff", "--name-only", "-z", base)
	if err != nil {
		return nil, err
	}
	untracked, err := s.git(ctx, nil, "ls-files", "--others", "--exclude-standard", "-z")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(diff+untracked, "\x00"), func(p string) bool { return p == "" }), nil
}

// Checkout implements dispatch.Source.
func (s *localSource) Checkout(ev tgr.Event) runner.CheckoutSource { return localCheckout{s, ev} }

// Actions implements dispatch.Source.
func (s *localSource) Actions(tgr.Event) runner.ActionSource {
	src, err := s.cache("")
	if err != nil {
		return nil
	}
	return src
}

// cache is the source of other repositories, and, with remote, of this one.
func (s *localSource) cache(remote string) (*github.Source, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	if remote != "" {
		dir = s.tmp // a clone of a clone that is gone in a moment
	}
	return github.NewSource(github.SourceConfig{
		Dir: filepath.Join(dir, "tgr", "repos"), BaseURL: envOr("GITHUB_SERVER_URL", "https://github.com"), Log: s.log,
		Remote: func(r tgr.Repo) string {
			if remote != "" && r.FullName == s.repo.FullName {
				return remote
			}
			return ""
		},
		Token: func(context.Context, string) (string, error) { return os.Getenv("GITHUB_TOKEN"), nil },
	})
}

// localCheckout serves the working tree for this repository, and GitHub's clones for any other.
type localCheckout struct {
	s  *localSource
	ev tgr.Event
}

// Checkout implements runner.CheckoutSource.
func (c localCheckout) Checkout(ctx context.Context, r runner.CheckoutRequest) (runner.CheckoutResult, error) {
	if !strings.EqualFold(r.Repository, c.s.repo.FullName) {
		src, err := c.s.cache("")
		if err != nil {
			return runner.CheckoutResult{}, err
		}
		return checkoutSource{src, c.ev}.Checkout(ctx, r)
	}
	repo, sha, err := c.s.snapshot()
	if err != nil {
		return runner.CheckoutResult{}, err
	}
	src, err := c.s.cache("file://" + repo)
	if err != nil {
		return runner.CheckoutResult{}, err
	}
	ev := c.ev
	ev.SHA = sha
	if r.SHA != "" {
		r.SHA = sha
		ev.Ref = "refs/heads/" + c.s.branch
		if _, err := src.Fetch(ctx, ev.Repo, sha, ev.Ref); err != nil {
			return runner.CheckoutResult{}, err
		}
	}
	return checkoutSource{src, ev}.Checkout(ctx, r)
}

// commitTree commits the working tree as it is, ignored files left out, into a repository of its own that borrows the
// objects of the user's: nothing is written to that one. A clean tree is HEAD itself.
func (s *localSource) commitTree(ctx context.Context) (repo, sha string, err error) {
	if s.head == "" {
		return "", "", tgr.Errorf("checkout", tgr.Invalid, "%s is not a git repository with a commit: there is nothing to check out", s.dir)
	}
	if s.tmp, err = os.MkdirTemp("", "tgr-source-"); err != nil {
		return "", "", err
	}
	repo = filepath.Join(s.tmp, "repo.git")
	if _, err := s.git(ctx, nil, "init", "-q", "--bare", repo); err != nil {
		return "", "", err
	}
	paths, err := s.git(ctx, nil, "rev-parse", "--path-format=absolute", "--git-path", "objects", "--git-path", "index")
	if err != nil {
		return "", "", err
	}
	objects, index, _ := strings.Cut(strings.TrimSpace(paths), "\n")
	if err := os.WriteFile(filepath.Join(repo, "objects", "info", "alternates"), []byte(objects+"\n"), 0o600); err != nil {
		return "", "", err
	}
	tmpIndex := filepath.Join(s.tmp, "index")
	if data, err := os.ReadFile(index); err == nil { // git's cache of what is unchanged; without it everything is read
		if err := os.WriteFile(tmpIndex, data, 0o600); err != nil {
			return "", "", err
		}
	}
	env := []string{"GIT_DIR=" + repo, "GIT_WORK_TREE=" + s.dir, "GIT_INDEX_FILE=" + tmpIndex,
		"GIT_AUTHOR_NAME=tgr", "GIT_AUTHOR_EMAIL=tgr@localhost", "GIT_COMMITTER_NAME=tgr", "GIT_COMMITTER_EMAIL=tgr@localhost"}
	if _, err := s.git(ctx, env, "add", "-A"); err != nil {
		return "", "", err
	}
	tree, err := s.git(ctx, env, "write-tree")
	if err != nil {
		return "", "", err
	}
	sha = s.head
	if clean, err := s.git(ctx, env, "rev-parse", s.head+"^{tree}"); err != nil || clean != tree {
		sha, err = s.git(ctx, env, "commit-tree", "-m", "the working tree, uncommitted changes included", "-p", s.head, strings.TrimSpace(tree))
		if err != nil {
			return "", "", err
		}
		sha = strings.TrimSpace(sha)
	}
	_, err = s.git(ctx, env, "update-ref", "refs/heads/"+s.branch, sha)
	return repo, sha, err
}

// git runs git in the working tree and returns what it prints.
func (s *localSource) git(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], s.dir, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// notifyInterrupt has the next interrupt sent to ch.
func notifyInterrupt(ch chan os.Signal) { signal.Notify(ch, os.Interrupt, syscall.SIGTERM) }
