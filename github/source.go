package github

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"golang.org/x/sys/unix"
)

// SourceConfig is what a Source is made of. Dir is required.
type SourceConfig struct {
	Dir     string // where the bare clones are (REPOSITORY_PATH); made if absent
	BaseURL string // "": https://github.com. Repositories are at BaseURL/owner/name.git, never where a payload says
	// Remote overrides the address of a repository, such as a local one: a URL of https, http or file, or "" for
	// BaseURL's. nil: always BaseURL's.
	Remote func(repo tgr.Repo) string
	// Token returns the token for a repository, "" for none, or an error of [tgr.NotFound] where there can be none. It is passed to git in the environment of one process:
	// it appears in no argument, file or log. nil: none.
	Token    func(ctx context.Context, repo string) (string, error)
	Timeout  time.Duration // of one git process that talks to a remote; 0: 10 minutes
	MaxFile  int64         // bytes of one file that is read; 0: 1 MiB
	MaxCache int64         // bytes of prepared checkouts kept under Dir; 0: 2 GiB
	Log      *slog.Logger
}

// Source gets repositories from their server into bare clones, one per repository, and serves everything from
// there. Only what is needed is fetched: the commit alone at first, history when a question needs it.
// It is safe for concurrent use, also by several processes on the same Dir.
type Source struct {
	c SourceConfig

	mu    sync.Mutex
	locks map[string]*repoLock // by directory of the clone; only those in use
}

// NewSource checks the configuration; it does no I/O.
func NewSource(c SourceConfig) (*Source, error) {
	if c.Dir == "" {
		return nil, tgr.Errorf("source.new", tgr.Invalid, "the source needs a directory for its clones")
	}
	abs, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, tgr.Errorf("source.new", tgr.Invalid, "the source's directory %s: %v", c.Dir, err)
	}
	c.Dir = abs
	if c.BaseURL == "" {
		c.BaseURL = "https://github.com"
	}
	c.BaseURL = strings.TrimRight(c.BaseURL, "/")
	if err := checkRemote(c.BaseURL); err != nil {
		return nil, tgr.Errorf("source.new", tgr.Invalid, "the source's base URL: %v", err)
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Minute
	}
	if c.MaxFile <= 0 {
		c.MaxFile = 1 << 20
	}
	if c.MaxCache <= 0 {
		c.MaxCache = 2 << 30
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{c: c, locks: make(map[string]*repoLock)}, nil
}

func checkRemote(remote string) error {
	u, err := url.Parse(remote)
	switch {
	case err != nil:
		return err
	case u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "file":
		return fmt.Errorf("%q is not a URL of https, http or file", clip(remote, 200))
	case u.User != nil:
		return errors.New("a URL with a user or password would show them to everybody; give a token instead")
	case strings.ContainsFunc(remote, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return errors.New("a URL with spaces or control characters")
	}
	return nil
}

// clone is the bare clone of one repository.
type clone struct {
	s      *Source
	name   string // owner/name, for messages
	dir    string
	remote string
	token  *string // instead of the source's own; nil: that

	foreign bool     // named by a workflow, not by an event
	held    *os.File // the lock, while it is held
}

// clone names the repository's clone. The identity is the numeric id, because names change hands.
func (s *Source) clone(repo tgr.Repo) (*clone, error) {
	remote := ""
	if s.c.Remote != nil {
		remote = s.c.Remote(repo)
	}
	base := s.c.BaseURL
	if remote == "" {
		if !validRepo(repo.FullName) {
			return nil, tgr.Errorf("source", tgr.Invalid, "%q is not owner/name", clip(repo.FullName, 200))
		}
		remote = base + "/" + repo.FullName + ".git"
	} else {
		base = remote
		if err := checkRemote(remote); err != nil {
			return nil, tgr.Errorf("source", tgr.Invalid, "the address of %s: %v", repo.FullName, err)
		}
	}
	id := strconv.FormatInt(repo.ID, 10)
	if repo.ID == 0 {
		id = shortHash(strings.ToLower(remote))
	}
	return &clone{s: s, name: repo.FullName, remote: remote, dir: filepath.Join(s.c.Dir, "repos", shortHash(base), id+".git")}, nil
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// fail makes the error that crosses the room's boundary: it names the repository and what was wanted of it.
func (c *clone) fail(op, what string, err error) error {
	var e *tgr.Error
	if errors.As(err, &e) {
		return err
	}
	code, hint := codeOfGit(err), ""
	if code == tgr.Unauthorized && c.foreign {
		// GitHub asks for a password where a repository does not exist; whoever named it is to be told.
		code, hint = tgr.NotFound, " (there is no such repository, or this token may not read it)"
	}
	return tgr.Errorf("source."+op, code, "%s of %s: %w%s", what, c.name, err, hint)
}

// repoLock is held by who writes to a clone: a mutex for this process, a file lock for the others.
type repoLock struct {
	ch    chan struct{} // capacity 1: full while the lock is held
	users int
}

// lock waits for the clone's lock, or for ctx.
func (c *clone) lock(ctx context.Context) (unlock func(), err error) {
	s := c.s
	s.mu.Lock()
	l := s.locks[c.dir]
	if l == nil {
		l = &repoLock{ch: make(chan struct{}, 1)}
		s.locks[c.dir] = l
	}
	l.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(s.locks, c.dir)
		}
	}
	select {
	case l.ch <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
	f, err := lockFile(ctx, c.dir+".lock")
	if err != nil {
		<-l.ch
		leave()
		return nil, err
	}
	c.held = f
	return func() {
		// Explicitly, because a process that is still on its way out may have the file too.
		unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
		c.held = nil
		<-l.ch
		leave()
	}, nil
}

// lockFile takes an exclusive lock on a file beside the clone; another process may hold it for as long as a fetch.
func lockFile(ctx context.Context, name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	wait := time.NewTicker(20 * time.Millisecond)
	defer wait.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, err
		}
		select {
		case <-wait.C:
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// git calls git on the clone, without a network.
func (c *clone) git(ctx context.Context, args ...string) ([]byte, error) {
	return git{dir: c.dir}.run(ctx, args...)
}

// has reports whether the commit is in the clone.
func (c *clone) has(ctx context.Context, sha string) bool {
	if _, err := os.Stat(filepath.Join(c.dir, "HEAD")); err != nil {
		return false
	}
	_, err := c.git(ctx, "cat-file", "-e", sha+"^{commit}")
	return err == nil
}

// Fetch makes a commit available: the given one, or the tip of ref if sha is empty. It returns the commit's SHA.
// A commit that is there already costs no network. Where the server does not give out commits by their SHA, ref is
// fetched, and the commit must be found in its history.
func (s *Source) Fetch(ctx context.Context, repo tgr.Repo, sha, ref string) (string, error) {
	c, err := s.clone(repo)
	if err != nil {
		return "", err
	}
	what := "commit " + sha
	switch {
	case sha == "" && ref == "":
		return "", tgr.Errorf("source.fetch", tgr.Invalid, "neither a commit nor a ref of %s was asked for", c.name)
	case sha != "" && !shaPattern().MatchString(sha):
		return "", tgr.Errorf("source.fetch", tgr.Invalid, "%q is not a SHA", clip(sha, 100))
	case ref != "" && !validRef(ref):
		return "", tgr.Errorf("source.fetch", tgr.Invalid, "%q is not the full name of a ref", clip(ref, 100))
	case sha == "":
		what = "ref " + ref
	case c.has(ctx, sha):
		return sha, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", c.fail("fetch", what, err)
	}
	defer unlock()
	if sha == "" {
		sha, err = c.fetchRef(ctx, ref)
	} else {
		err = c.need(ctx, sha, ref)
	}
	if err != nil {
		return "", c.fail("fetch", what, err)
	}
	return sha, nil
}

// need fetches the commit unless it is there. The lock is held.
func (c *clone) need(ctx context.Context, sha, ref string) error {
	if c.has(ctx, sha) {
		return nil
	}
	err := c.fetch(ctx, c.depth(1), "+"+sha+":"+keepRef(sha, ref))
	if err == nil {
		return nil
	}
	if ref == "" || codeOfGit(err) != tgr.NotFound {
		return err
	}
	// The server does not give out this commit by itself. Look for it in the ref's history.
	for _, depth := range []string{"--depth=50", "--unshallow"} {
		if depth == "--unshallow" && !c.shallow() {
			depth = "--no-tags"
		}
		if ferr := c.fetch(ctx, depth, "+"+ref+":"+keepRef("", ref)); ferr != nil {
			return ferr
		}
		if c.has(ctx, sha) {
			return nil
		}
	}
	return err
}

// keepRef is the ref of the clone that holds what was fetched: it tells the next fetch what need not be sent again.
// One per ref of the remote, so that their number is bounded by what the remote has.
func keepRef(sha, ref string) string {
	if ref == "" {
		ref = sha
	}
	return "refs/tgr/keep/" + shortHash(ref) // not the ref's own name: branches a and a/b can follow each other
}

// fetchRef fetches the tip of a ref and returns its commit. The lock is held.
func (c *clone) fetchRef(ctx context.Context, ref string) (string, error) {
	if err := c.fetch(ctx, c.depth(1), "+"+ref+":"+keepRef("", ref)); err != nil {
		return "", err
	}
	out, err := c.git(ctx, "rev-parse", "--verify", "--end-of-options", keepRef("", ref)+"^{commit}")
	return strings.TrimSpace(string(out)), err
}

// depth asks for n commits, unless the clone has all history, which a shallow fetch would cut off.
func (c *clone) depth(n int) string {
	if packs, _ := c.packs(); len(packs) > 0 && !c.shallow() {
		return "--no-tags"
	}
	return "--depth=" + strconv.Itoa(n)
}

// shallow reports whether the history of some commit is cut off.
func (c *clone) shallow() bool {
	_, err := os.Stat(filepath.Join(c.dir, "shallow"))
	return err == nil
}

// fetch talks to the remote. The lock is held.
func (c *clone) fetch(ctx context.Context, depth string, refspecs ...string) error {
	if err := c.create(); err != nil {
		return err
	}
	g, err := c.authorised(ctx)
	if err != nil {
		return err
	}
	c.sweep()
	g.dir, g.hold = c.dir, c.held
	ctx, cancel := context.WithTimeoutCause(ctx, c.s.c.Timeout, fmt.Errorf("%w: no answer within %v", context.DeadlineExceeded, c.s.c.Timeout))
	defer cancel()
	start := time.Now()
	args := []string{"fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
		"--no-recurse-submodules", "--force", depth}
	if strings.Contains(strings.Join(refspecs, " "), "*") {
		args = append(args, "--prune")
	}
	args = append(args, "--end-of-options", c.remote)
	if _, err := g.run(ctx, append(args, refspecs...)...); err != nil {
		return err
	}
	c.s.c.Log.Debug("fetched", "repo", c.name, "refs", refspecs, "depth", depth, "took", time.Since(start))
	return c.tidy(ctx)
}

// sweep removes what a git left behind that was killed with the machine or the server. The lock is held, so that
// no other git is at work in the clone.
func (c *clone) sweep() {
	stale, _ := filepath.Glob(filepath.Join(c.dir, "objects", "pack", "tmp_*"))
	stale = append(stale, filepath.Join(c.dir, "shallow.lock"), filepath.Join(c.dir, "packed-refs.lock"))
	filepath.WalkDir(filepath.Join(c.dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".lock") && d.Type().IsRegular() {
			stale = append(stale, path)
		}
		return nil
	})
	for _, name := range stale {
		if err := os.Remove(name); err == nil {
			c.s.c.Log.Warn("removed what an interrupted git left behind", "file", name)
		}
	}
}

// authorised prepares a git that may talk to the clone's remote.
func (c *clone) authorised(ctx context.Context) (git, error) { return c.authorisedFor(ctx, c.remote) }

// authorisedFor sends the clone's token with requests to addresses that begin with url.
func (c *clone) authorisedFor(ctx context.Context, url string) (git, error) {
	g := gitFor(url)
	switch {
	case strings.HasPrefix(url, "file:"):
	case c.token != nil:
		g.conf = append(g.conf, tokenConf(url, *c.token)...)
	default:
		token, err := c.ownToken(ctx)
		if err != nil {
			return g, err
		}
		g.conf = append(g.conf, tokenConf(url, token)...)
	}
	return g, nil
}

// gitFor prepares a git that may use the transport of an address, and no other: no redirection leads from https to http.
func gitFor(url string) git {
	scheme, _, _ := strings.Cut(url, ":")
	return git{conf: [][2]string{{"protocol." + scheme + ".allow", "always"}}}
}

// ownToken is the source's own token for the clone, "" for none.
func (c *clone) ownToken(ctx context.Context) (string, error) {
	if c.s.c.Token == nil {
		return "", nil
	}
	token, err := c.s.c.Token(ctx, c.name)
	if c.foreign && tgr.CodeOf(err) == tgr.NotFound {
		return "", nil // an App has no token for the actions and workflows of others, and public ones need none
	}
	if err != nil {
		return "", &tgr.Error{Op: "source.token", Code: tgr.Unavailable, Message: "no token for " + c.name, Err: err}
	}
	return token, nil
}

// create makes an empty bare repository by hand: it costs no process.
func (c *clone) create() error {
	if _, err := os.Stat(filepath.Join(c.dir, "HEAD")); err == nil {
		return nil
	}
	for _, d := range []string{"objects/pack", "objects/info", "refs/heads"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config"), []byte("[core]\n\trepositoryformatversion = 0\n\tbare = true\n"), 0o600); err != nil {
		return err
	}
	// HEAD makes it a repository; it comes last, and whole.
	tmp := filepath.Join(c.dir, "HEAD.new")
	if err := os.WriteFile(tmp, []byte("ref: refs/heads/none\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, "HEAD"))
}

// maxPacks is how many packs a clone may have before they are made one. Each fetch adds one.
const maxPacks = 64

// tidy merges the packs when there are many. Objects that no ref holds are kept: a queued run may need them.
func (c *clone) tidy(ctx context.Context) error {
	packs, err := c.packs()
	if err != nil || len(packs) <= maxPacks {
		return err
	}
	_, err = c.git(ctx, "repack", "-a", "-d", "-k", "-q")
	return err
}

func (c *clone) packs() ([]string, error) {
	return filepath.Glob(filepath.Join(c.dir, "objects", "pack", "*.pack"))
}

// Resolve returns the commit that a ref of the remote points to now. ref is a full name, the name of a branch or a
// tag (a branch wins), or a SHA, which is returned as it is. An annotated tag is followed to its commit.
func (s *Source) Resolve(ctx context.Context, repo tgr.Repo, ref string) (string, error) {
	c, err := s.clone(repo)
	if err != nil {
		return "", err
	}
	_, sha, err := c.resolve(ctx, ref)
	return sha, err
}

// resolve also returns the full name, "" for a SHA. No ref is the remote's default branch.
func (c *clone) resolve(ctx context.Context, ref string) (full, sha string, err error) {
	if shaPattern().MatchString(ref) {
		return "", ref, nil
	}
	names := []string{ref}
	switch {
	case ref == "":
		names = []string{"HEAD"}
	case !strings.HasPrefix(ref, "refs/"):
		names = []string{"refs/heads/" + ref, "refs/tags/" + ref}
	}
	if ref != "" && !validRef(names[0]) {
		return "", "", tgr.Errorf("source.resolve", tgr.Invalid, "%q is not the name of a ref", clip(ref, 100))
	}
	var patterns []string
	for _, n := range names {
		patterns = append(patterns, n, n+"^{}")
	}
	out, err := c.lsRemote(ctx, patterns...)
	if err != nil {
		return "", "", c.fail("resolve", "ref "+ref, err)
	}
	found := make(map[string]string)
	for line := range strings.Lines(out) {
		if target, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && name == "HEAD" && strings.HasPrefix(target, "ref: ") {
			names = append(names, strings.TrimPrefix(target, "ref: ")) // HEAD's own name, for what is returned
		}
		if sha, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && shaPattern().MatchString(sha) {
			found[name] = sha
		}
	}
	for _, n := range names {
		if sha := found[n+"^{}"]; sha != "" {
			return n, sha, nil
		}
		if sha := found[n]; sha != "" && n == "HEAD" && len(names) > 1 && validRef(names[1]) {
			return names[1], sha, nil
		} else if sha != "" && n != "HEAD" {
			return n, sha, nil
		}
	}
	if ref == "" {
		return "", "", tgr.Errorf("source.resolve", tgr.NotFound, "%s is empty: it has no default branch", c.name)
	}
	return "", "", tgr.Errorf("source.resolve", tgr.NotFound, "%s has no branch or tag %s", c.name, ref)
}

// lsRemote asks the remote for the refs that match patterns, and what HEAD is.
func (c *clone) lsRemote(ctx context.Context, patterns ...string) (string, error) {
	g, err := c.authorised(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.s.c.Timeout)
	defer cancel()
	out, err := g.run(ctx, append([]string{"ls-remote", "--quiet", "--symref", "--end-of-options", c.remote}, patterns...)...)
	return string(out), err
}
