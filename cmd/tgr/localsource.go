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
	"github.com/terraphim/tgr/workflow"
)

const maxWorkflow = 1 << 20 // bytes that are read of a workflow file; the compiler refuses less

// localSource is the repository in a working tree, as it is now.
type localSource struct {
	dir    string // top of the working tree
	repo   tgr.Repo
	branch string // that is checked out, or a guess
	ref    string // what a push of HEAD would be to
	head   string // "" in a folder that is not a repository, or has no commit
	isRepo bool
	commit commit
	only   []string // workflow files to look at; nil: all
	log    *slog.Logger

	snapshot func() (string, string, error) // makes the commit that is checked out, once: its repository and SHA
	tmp      string                         // folder for that, which the caller removes
}

// openLocalSource looks at the repository that dir is in. A folder that is in none is a working tree all the same.
func openLocalSource(ctx context.Context, dir, tmp string, log *slog.Logger) (*localSource, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &localSource{dir: abs, tmp: tmp, log: log}
	if !s.look(ctx) {
		if err := s.ask(ctx); err != nil {
			return nil, err
		}
	}
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

// look reads what the repository's files say, and asks git only for the commit; false: that did not do.
func (s *localSource) look(ctx context.Context) bool {
	plain, ok := readPlainRepo(s.dir)
	if !ok {
		return false
	}
	out, err := s.git(ctx, nil, "log", "-1", commitFormat)
	if err != nil {
		return false // there is none yet, or the repository is another user's
	}
	s.commit = parseCommit(out)
	s.dir, s.head, s.ref, s.isRepo = plain.top, s.commit.sha, plain.ref, true
	s.branch = strings.TrimPrefix(s.ref, "refs/heads/")
	s.setRepo(plain.origin, plain.refs)
	return true
}

// ask has git answer everything.
func (s *localSource) ask(ctx context.Context) error {
	// Each process costs as much as a step: few of them, and at the same time.
	questions := [][]string{
		{"rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD"},
		{"config", "--get", "remote.origin.url"}, // none is no error
		{"log", "-1", commitFormat},
		{"for-each-ref", "--format=%(refname) %(symref)", "refs/heads/main", "refs/heads/master", "refs/remotes/origin/HEAD"},
	}
	answers, errs := make([]string, len(questions)), make([]error, len(questions))
	var all sync.WaitGroup
	for i, q := range questions {
		all.Go(func() { answers[i], errs[i] = s.git(ctx, nil, q...) })
	}
	all.Wait()
	s.commit = parseCommit(answers[2])
	if err := s.place(ctx, answers[0], errs[0]); err != nil {
		return err
	}
	s.setRepo(strings.TrimSpace(answers[1]), answers[3])
	return nil
}

func (s *localSource) setRepo(origin, refs string) {
	s.repo = tgr.Repo{FullName: fullName(origin, s.dir), CloneURL: origin, DefaultBranch: defaultBranch(refs, s.branch)}
}

// place finds out where the working tree begins and what is checked out, from what git rev-parse said.
func (s *localSource) place(ctx context.Context, out string, err error) error {
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if err == nil && len(lines) == 3 {
		s.dir, s.head, s.ref, s.isRepo = lines[0], lines[1], lines[2], true
		if s.ref == "HEAD" {
			s.ref = s.detached(ctx)
		}
		s.branch = strings.TrimPrefix(strings.TrimPrefix(s.ref, "refs/heads/"), "refs/tags/")
		return nil
	}
	top, err := s.git(ctx, nil, "rev-parse", "--show-toplevel")
	if err != nil && !strings.Contains(err.Error(), "not a git repository") {
		return err // a git that is missing, a repository of another user
	}
	s.branch = "main"
	if err == nil { // a repository without a commit
		s.dir, s.isRepo = strings.TrimSuffix(top, "\n"), true
		if name, err := s.git(ctx, nil, "symbolic-ref", "--short", "HEAD"); err == nil {
			s.branch = strings.TrimSpace(name)
		}
	}
	s.ref = "refs/heads/" + s.branch
	return nil
}

// detached is the branch or tag that a detached HEAD is at, as other systems' checkouts leave it; main, if there is none.
func (s *localSource) detached(ctx context.Context) string {
	out, _ := s.git(ctx, nil, "for-each-ref", "--points-at", "HEAD", "--format=%(refname)", "refs/heads", "refs/remotes/origin", "refs/tags")
	for ref := range strings.Lines(out) { // sorted, heads first
		ref = strings.TrimSpace(ref)
		if name, ok := strings.CutPrefix(ref, "refs/remotes/origin/"); ok {
			if name == "HEAD" {
				continue
			}
			ref = "refs/heads/" + name
		}
		return ref
	}
	return "refs/heads/main"
}

// defaultBranch is origin's, or else main or master, or else the one that is checked out. refs is what git
// for-each-ref said of them.
func defaultBranch(refs, current string) string {
	found := ""
	for line := range strings.Lines(refs) {
		name, symref, _ := strings.Cut(strings.TrimSpace(line), " ")
		if branch, ok := strings.CutPrefix(symref, "refs/remotes/origin/"); ok {
			return branch
		}
		if found == "" {
			found = strings.TrimPrefix(name, "refs/heads/")
		}
	}
	if found == "" || strings.HasPrefix(found, "refs/") {
		return current
	}
	return found
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

// choose turns -W into paths of workflow files.
func (s *localSource) choose(files []string) ([]string, error) {
	var out []string
	for _, f := range files {
		places := []string{f, filepath.Join(s.dir, f), filepath.Join(s.dir, workflowDir, f)}
		i := slices.IndexFunc(places, func(p string) bool {
			info, err := os.Stat(p)
			return err == nil && !info.IsDir()
		})
		if i < 0 {
			return nil, fmt.Errorf("-W %s: no such file, neither as it is nor in %s%s", f, filepath.Join(s.dir, workflowDir), s.listed())
		}
		abs, err := filepath.Abs(places[i])
		if err != nil {
			return nil, err
		}
		out = append(out, abs)
	}
	return out, nil
}

// listed says which workflow files there are, the first of them.
func (s *localSource) listed() string {
	entries, err := os.ReadDir(filepath.Join(s.dir, workflowDir))
	if err != nil {
		return ""
	}
	var names []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yml" || ext == ".yaml") {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return ""
	}
	if len(names) > 10 {
		names = append(names[:10], "…")
	}
	return ", where there are " + strings.Join(names, ", ")
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
			if !e.IsDir() && isWorkflow(path.Join(workflowDir, e.Name())) { // a folder may have any name
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

// Workflow implements dispatch.Source.
func (s *localSource) Workflow(ctx context.Context, ev tgr.Event, repo, ref, name string) (workflow.Loaded, error) {
	if repo == "" {
		data, err := readBounded(filepath.Join(s.dir, filepath.FromSlash(name)), maxWorkflow)
		if errors.Is(err, os.ErrNotExist) {
			err = tgr.Errorf("source.workflow", tgr.NotFound, "there is no file %s", name)
		}
		return workflow.Loaded{File: name, Data: data}, err
	}
	src, err := s.cache("")
	if err != nil {
		return workflow.Loaded{}, err
	}
	full, sha, data, err := src.RemoteFile(ctx, s.reader(ev), repo, ref, name)
	return workflow.Loaded{Data: data, Repo: repo, Ref: full, SHA: sha}, err
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// Changed implements dispatch.Source: what differs from the commit before, or from where a pull request's branch began,
// uncommitted changes included.
func (s *localSource) Changed(ctx context.Context, ev tgr.Event) ([]string, error) {
	if s.head == "" {
		out, err := s.git(ctx, nil, "ls-files", "--others", "--exclude-standard", "-z")
		return nulls(out), err
	}
	base := ev.BaseSHA
	if base == "" {
		base, _, _ = strings.Cut(s.commit.parents, " ")
	}
	if base == "" {
		base = "4b825dc642cb6eb9a060e54bf8d69288fbee4904" // git's name of the empty tree
	}
	diff, err := s.git(ctx, nil, "diff", "--name-only", "-z", base)
	if err != nil {
		return nil, err
	}
	untracked, err := s.git(ctx, nil, "ls-files", "--others", "--exclude-standard", "-z")
	return nulls(diff + untracked), err
}

// Message implements dispatch.Source.
func (s *localSource) Message(context.Context, tgr.Event) (string, error) {
	return s.commit.message, nil
}

// nulls splits what git -z prints.
func nulls(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "\x00"), func(p string) bool { return p == "" })
}

// mergeBase is where the branch left the default branch; on that branch itself, the commit before.
func (s *localSource) mergeBase(ctx context.Context) string {
	for _, with := range []string{"refs/remotes/origin/" + s.repo.DefaultBranch, "refs/heads/" + s.repo.DefaultBranch} {
		if out, err := s.git(ctx, nil, "merge-base", "HEAD", with); err == nil && strings.TrimSpace(out) != s.head {
			return strings.TrimSpace(out)
		}
	}
	parent, _, _ := strings.Cut(s.commit.parents, " ")
	return parent
}

// Checkout implements dispatch.Source.
func (s *localSource) Checkout(ev tgr.Event, _ string) runner.CheckoutSource {
	return localCheckout{s, ev}
}

// Actions implements dispatch.Source.
func (s *localSource) Actions(ev tgr.Event, _ string) runner.ActionSource {
	src, err := s.cache("")
	if err != nil {
		return nil
	}
	return actionSource{src, s.reader(ev)}
}

// reader is whoever calls the command, whatever the event that is played: the credentials are theirs.
func (s *localSource) reader(ev tgr.Event) github.Reader {
	return github.Reader{Repo: s.repo.FullName, SHA: ev.SHA, Trusted: true, Token: ownToken}
}

func ownToken(context.Context) (string, error) { return os.Getenv("GITHUB_TOKEN"), nil }

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
			return mirrorOf(os.Getenv("TGR_ACTIONS_MIRROR"))(r)
		},
		Token: func(ctx context.Context, _ string) (string, error) { return ownToken(ctx) },
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
		return checkoutSource{src, c.ev, c.s.reader(c.ev)}.Checkout(ctx, r)
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
	return checkoutSource{src, ev, c.s.reader(ev)}.Checkout(ctx, r)
}

// commitTree commits the working tree as it is, ignored files left out, into a repository of its own that borrows the
// objects of the user's: nothing is written to that one. A clean tree is HEAD itself.
func (s *localSource) commitTree(ctx context.Context) (repo, sha string, err error) {
	if err := os.MkdirAll(s.tmp, 0o700); err != nil {
		return "", "", err
	}
	repo = filepath.Join(s.tmp, "repo.git")
	if _, err := s.git(ctx, nil, "init", "-q", "--bare", repo); err != nil {
		return "", "", err
	}
	tmpIndex := filepath.Join(s.tmp, "index")
	env := []string{"GIT_INDEX_FILE=" + tmpIndex,
		"GIT_AUTHOR_NAME=tgr", "GIT_AUTHOR_EMAIL=tgr@localhost", "GIT_COMMITTER_NAME=tgr", "GIT_COMMITTER_EMAIL=tgr@localhost"}
	own := append(env[:len(env):len(env)], "GIT_DIR="+repo, "GIT_WORK_TREE="+s.dir)
	yours := own
	if s.isRepo {
		if err := s.borrow(ctx, repo, tmpIndex); err != nil {
			return "", "", err
		}
		// The user's repository says what is ignored and which filters there are; what git writes goes to the other.
		yours = append(env[:len(env):len(env)], "GIT_OBJECT_DIRECTORY="+filepath.Join(repo, "objects"))
	}
	if _, err := s.git(ctx, yours, "-c", "core.splitIndex=false", "-c", "core.fsmonitor=false", "-c", "core.sparseCheckout=false", "add", "-A"); err != nil {
		return "", "", tgr.Errorf("source.tree", tgr.Invalid, "the working tree cannot be committed: %w", err)
	}
	tree, err := s.git(ctx, yours, "write-tree")
	if err != nil {
		return "", "", err
	}
	sha = s.head
	if tree = strings.TrimSpace(tree); tree != s.commit.tree {
		args := []string{"commit-tree", "-m", "the working tree, uncommitted changes included", tree}
		if s.head != "" {
			args = append(args, "-p", s.head)
		}
		if sha, err = s.git(ctx, own, args...); err != nil {
			return "", "", err
		}
		sha = strings.TrimSpace(sha)
	}
	_, err = s.git(ctx, own, "update-ref", "refs/heads/"+s.branch, sha)
	return repo, sha, err
}

// borrow lets a repository use the objects of the user's, as far as their history goes, and copies the user's index.
func (s *localSource) borrow(ctx context.Context, repo, index string) error {
	paths, err := s.git(ctx, nil, "rev-parse", "--path-format=absolute", "--git-path", "objects", "--git-path", "shallow", "--git-path", "index")
	if err != nil {
		return err
	}
	lines := strings.SplitN(strings.TrimSuffix(paths, "\n"), "\n", 3)
	if len(lines) < 3 {
		return fmt.Errorf("git rev-parse in %s said %q", s.dir, paths)
	}
	if err := os.WriteFile(filepath.Join(repo, "objects", "info", "alternates"), []byte(lines[0]+"\n"), 0o600); err != nil {
		return err
	}
	for i, to := range []string{filepath.Join(repo, "shallow"), index} {
		data, err := os.ReadFile(lines[i+1])
		if err != nil {
			continue // all history is there; or git's cache of what is unchanged is not, and everything is read
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// git runs git in the working tree and returns what it prints.
func (s *localSource) git(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = s.dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		for args[0] == "-c" {
			args = args[2:]
		}
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], s.dir, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// notifyInterrupt has the next interrupt sent to ch.
func notifyInterrupt(ch chan os.Signal) { signal.Notify(ch, os.Interrupt, syscall.SIGTERM) }
