package github

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// CheckoutSpec says what to check out, in the terms of actions/checkout. Repo is required; of another repository than
// the event's only the name is known.
type CheckoutSpec struct {
	tgr.Redacted

	Repo tgr.Repo
	// Ref is a full name, the name of a branch or tag, or a SHA; "" with no SHA: the default branch. SHA is the commit
	// if it is known; then Ref only says what the working tree is on: a branch is checked out as a branch, anything
	// else with a detached HEAD.
	Ref string
	SHA string
	// Depth is how many commits of history there are; 0: all of it, for all branches and tags. Callers that serve
	// actions/checkout pass 1 unless the workflow says otherwise.
	Depth      int
	Tags       bool
	Submodules string   // "", "false", "true" or "recursive"; only from the same server
	Sparse     []string // sparse-checkout patterns; none: everything
	NoCone     bool     // the patterns are not of cone mode
	LFS        bool     // refused
	// Token is left in the working tree's configuration, for the job's own git (persist-credentials). "": none.
	Token string
	// Foreign is for another repository than the event's: it is fetched with FetchToken and never with the source's
	// own token, and the server is asked every time whether FetchToken may read it.
	Foreign    bool
	FetchToken string
	// For is the run that checks out. Its submodules, which may be of any repository, come with the source's own token
	// where For reads them so, and else with FetchToken; those of a Foreign one all with that.
	For Reader `json:"-"`
	UID int    // who owns the files; 0: 1001, the runner of GitHub's images
	GID int    // 0: 1001

	readers string // who else may have what is prepared; "": everybody who may have the commit
}

// Checkout is a working tree on its way into a machine.
type Checkout struct {
	SHA string // the commit
	Ref string // full name, "" for a bare commit
	// Tar holds the tree with its .git directory, paths relative to the workspace. The caller closes it.
	Tar io.ReadCloser
}

// Checkout makes a working tree of a commit with its own small repository, from the clone. The first one of a commit
// is prepared with git and kept; after that a checkout costs only the streaming. Nothing of a token is kept.
func (s *Source) Checkout(ctx context.Context, spec CheckoutSpec) (*Checkout, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	c, err := s.clone(spec.Repo)
	if err != nil {
		return nil, err
	}
	if spec.Foreign {
		c.token, c.foreign = &spec.FetchToken, true
	}
	switch {
	case spec.SHA == "":
		if spec.Ref, spec.SHA, err = c.resolve(ctx, spec.Ref); err != nil {
			return nil, err
		}
	case spec.Foreign:
		if _, _, err := c.resolve(ctx, ""); err != nil {
			return nil, err
		}
		fallthrough
	case spec.Ref != "" && !strings.HasPrefix(spec.Ref, "refs/"):
		spec.Ref = branchRef(spec.Ref)
	}
	if spec.Submodules != "" {
		if spec.readers, err = spec.sharers(ctx); err != nil {
			return nil, c.fail("checkout", "the job's token for the submodules of "+spec.SHA, err)
		}
	}
	t, err := c.template(ctx, spec)
	if err != nil {
		return nil, c.fail("checkout", "checkout of commit "+spec.SHA, err)
	}
	tar, err := t.open(spec)
	if err != nil {
		return nil, c.fail("checkout", "checkout of commit "+spec.SHA, err)
	}
	return &Checkout{SHA: spec.SHA, Ref: spec.Ref, Tar: tar}, nil
}

func (p *CheckoutSpec) validate() error {
	if shaPattern().MatchString(p.Ref) && p.SHA == "" {
		p.SHA, p.Ref = p.Ref, ""
	}
	if p.Depth < 0 {
		p.Depth = 0
	}
	if p.UID == 0 {
		p.UID = 1001
	}
	if p.GID == 0 {
		p.GID = 1001
	}
	if p.Submodules == "false" {
		p.Submodules = ""
	}
	bad := func(format string, args ...any) error {
		return tgr.Errorf("source.checkout", tgr.Invalid, "checkout of "+p.Repo.FullName+": "+format, args...)
	}
	full := p.Ref
	if full != "" && !strings.HasPrefix(full, "refs/") {
		full = branchRef(full)
	}
	switch {
	case p.LFS:
		return bad("lfs is not supported: the files of Git LFS are not in the repository; run git lfs pull in a step")
	case full != "" && !validRef(full):
		return bad("%q is not a ref", clip(p.Ref, 100))
	case p.SHA != "" && !shaPattern().MatchString(p.SHA):
		return bad("%q is not a SHA", clip(p.SHA, 100))
	case p.Submodules != "" && p.Submodules != "true" && p.Submodules != "recursive":
		return bad("submodules is %q; it can be false, true or recursive", clip(p.Submodules, 100))
	case strings.ContainsAny(p.Token+p.FetchToken, "\r\n\x00"):
		return bad("the token has control characters")
	}
	for _, line := range p.Sparse {
		if strings.ContainsAny(line, "\r\n\x00") {
			return bad("a sparse-checkout pattern has control characters: %q", clip(line, 100))
		}
	}
	return nil
}

// template returns the prepared checkout of a commit, and makes it if it is not there.
func (c *clone) template(ctx context.Context, spec CheckoutSpec) (*template, error) {
	if spec.Depth > 0 && !spec.Tags {
		if t := c.s.templateOf(c, spec, ""); t.exists() {
			return t, nil
		}
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	state, err := c.provide(ctx, spec)
	if err != nil {
		return nil, err
	}
	t := c.s.templateOf(c, spec, state)
	if t.exists() { // another checkout of the same made it while this one waited
		return t, nil
	}
	start := time.Now()
	if err := c.build(ctx, spec, t); err != nil {
		return nil, err
	}
	c.s.c.Log.Debug("prepared a checkout", "repo", c.name, "sha", spec.SHA, "took", time.Since(start))
	return t, nil
}

// provide fetches what a checkout needs. state names the branches and tags that are part of it, "" if none are.
func (c *clone) provide(ctx context.Context, spec CheckoutSpec) (state string, err error) {
	want := "+" + spec.SHA + ":" + keepRef(spec.SHA, spec.Ref)
	refs := []string{}
	if spec.Tags || spec.Depth == 0 {
		refs = append(refs, "+refs/tags/*:refs/tgr/tags/*")
	}
	if spec.Depth == 0 {
		refs = append(refs, "+refs/heads/*:refs/tgr/heads/*")
	}
	depth := c.depth(max(spec.Depth, 1))
	if spec.Depth == 0 {
		if depth = "--no-tags"; c.shallow() {
			depth = "--unshallow"
		}
	}
	switch {
	case len(refs) > 0:
		if err := c.need(ctx, spec.SHA, spec.Ref); err != nil {
			return "", err
		}
		if spec.Depth == 0 && depth == "--unshallow" {
			if err := c.fetch(ctx, depth, want); err != nil {
				return "", err
			}
			depth = "--no-tags"
		}
		if err := c.fetch(ctx, depth, refs...); err != nil {
			return "", err
		}
		out, err := c.git(ctx, "for-each-ref", "--format=%(objectname) %(refname)", "refs/tgr/heads", "refs/tgr/tags")
		return shortHash(string(out)), err
	case spec.Depth > 1 && c.shallow():
		return "", c.fetch(ctx, depth, want)
	}
	return "", c.need(ctx, spec.SHA, spec.Ref)
}

// build makes a working tree with git in a temporary directory and packs it.
func (c *clone) build(ctx context.Context, spec CheckoutSpec, t *template) error {
	ctx, cancel := context.WithTimeout(ctx, c.s.c.Timeout)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(t.tar), 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(t.tar), "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	w := &worktree{c: c, spec: spec, dir: work, git: filepath.Join(work, ".git")}
	if err := w.init(); err != nil {
		return err
	}
	if err := w.fetch(ctx); err != nil {
		return err
	}
	if err := w.checkout(ctx); err != nil {
		return err
	}
	if spec.Submodules != "" {
		if err := w.submodules(ctx, work, 1); err != nil {
			return err
		}
	}
	return t.pack(work, spec.UID, spec.GID)
}

// worktree is a working tree that is being made.
type worktree struct {
	c    *clone
	spec CheckoutSpec
	dir  string
	git  string // dir/.git
}

// run calls git in the working tree. The clone is the only remote that it may use.
func (w *worktree) run(ctx context.Context, stdin io.Reader, args ...string) error {
	_, err := git{dir: w.git, work: w.dir, stdin: stdin, conf: [][2]string{{"protocol.file.allow", "always"}}}.run(ctx, args...)
	return err
}

// init writes an empty repository by hand: its remote is the real server, not the clone.
func (w *worktree) init() error {
	for _, d := range []string{"objects/pack", "objects/info", "refs/heads", "refs/tags", "info"} {
		if err := os.MkdirAll(filepath.Join(w.git, d), 0o755); err != nil {
			return err
		}
	}
	conf := "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n" +
		"\tcheckStat = minimal\n\ttrustctime = false\n" + // the files get new inodes in the machine
		"[remote \"origin\"]\n\turl = " + quoteConfig(strings.TrimSuffix(w.c.remote, ".git")) +
		"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n[gc]\n\tauto = 0\n"
	if branch, ok := strings.CutPrefix(w.spec.Ref, "refs/heads/"); ok {
		conf += "[branch " + quoteConfig(branch) + "]\n\tremote = origin\n\tmerge = " + quoteConfig(w.spec.Ref) + "\n"
	}
	if err := os.WriteFile(filepath.Join(w.git, "config"), []byte(conf), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.git, "HEAD"), []byte("ref: refs/heads/none\n"), 0o644)
}

// fetch brings the objects from the clone.
func (w *worktree) fetch(ctx context.Context) error {
	args := []string{"fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-shallow", "--no-recurse-submodules"}
	if w.spec.Depth > 0 {
		args = append(args, "--depth="+strconv.Itoa(w.spec.Depth))
	}
	args = append(args, "--end-of-options", (&url.URL{Scheme: "file", Path: w.c.dir}).String())
	if w.spec.Depth == 0 {
		args = append(args, "+refs/tgr/heads/*:refs/remotes/origin/*")
	}
	if w.spec.Depth == 0 || w.spec.Tags {
		args = append(args, "+refs/tgr/tags/*:refs/tags/*")
	}
	if err := w.run(ctx, nil, append(args, w.spec.SHA)...); err != nil {
		return err
	}
	// The ref is written apart: it and a wildcard may name the same one.
	return w.writeRef(ctx, trackingRef(w.spec.Ref))
}

// trackingRef is where actions/checkout keeps what it fetched.
func trackingRef(ref string) string {
	if name, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
		return "refs/remotes/origin/" + name
	}
	if name, ok := strings.CutPrefix(ref, "refs/pull/"); ok {
		return "refs/remotes/pull/" + name
	}
	return ref
}

// writeRef points a ref to the commit. An annotated tag that was fetched as such is left alone.
func (w *worktree) writeRef(ctx context.Context, ref string) error {
	if ref == "" || strings.HasPrefix(ref, "refs/tags/") && (w.spec.Tags || w.spec.Depth == 0) {
		return nil
	}
	if w.spec.Depth == 0 {
		return w.run(ctx, nil, "update-ref", "--no-deref", ref, w.spec.SHA) // it may be packed, or in another's way
	}
	name := filepath.Join(w.git, filepath.FromSlash(ref)) // ref is valid: it leads nowhere else
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(w.spec.SHA+"\n"), 0o644)
}

// checkout fills the working tree.
func (w *worktree) checkout(ctx context.Context) error {
	head := w.spec.SHA
	if strings.HasPrefix(w.spec.Ref, "refs/heads/") {
		if err := w.writeRef(ctx, w.spec.Ref); err != nil {
			return err
		}
		head = "ref: " + w.spec.Ref
	}
	if err := os.WriteFile(filepath.Join(w.git, "HEAD"), []byte(head+"\n"), 0o644); err != nil {
		return err
	}
	if len(w.spec.Sparse) > 0 {
		mode := "--cone"
		if w.spec.NoCone {
			mode = "--no-cone"
		}
		if err := w.run(ctx, strings.NewReader(strings.Join(w.spec.Sparse, "\n")+"\n"), "sparse-checkout", "set", mode, "--stdin"); err != nil {
			return err
		}
	}
	return w.run(ctx, nil, "read-tree", "--reset", "-u", "HEAD")
}

// maxSubmoduleDepth bounds submodules of submodules.
const maxSubmoduleDepth = 10

// submodules fills the submodules of the working tree at dir, level by level: each address is checked before git
// uses it. They come from the server itself; the prepared checkout is their cache.
func (w *worktree) submodules(ctx context.Context, dir string, level int) error {
	if level > maxSubmoduleDepth {
		return tgr.Errorf("source.checkout", tgr.Limit, "%s has submodules more than %d levels deep", w.c.name, maxSubmoduleDepth)
	}
	if fi, err := os.Lstat(filepath.Join(dir, ".gitmodules")); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil || !fi.Mode().IsRegular() {
		return tgr.Errorf("source.checkout", tgr.Invalid, ".gitmodules of %s is not a regular file", w.c.name)
	}
	g, err := w.c.forSubmodules(ctx, w.spec)
	if err != nil {
		return err
	}
	g.work = dir
	if _, err := g.run(ctx, "submodule", "init", "--quiet"); err != nil {
		return err
	}
	out, err := g.run(ctx, "config", "--null", "--local", "--get-regexp", `^submodule\..*\.url$`)
	if err != nil {
		return err
	}
	for entry := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		key, addr, _ := strings.Cut(entry, "\n")
		name := strings.TrimSuffix(strings.TrimPrefix(key, "submodule."), ".url")
		if err := w.c.s.sameServer(addr); err != nil {
			return tgr.Errorf("source.checkout", tgr.Invalid, "submodule %q of %s: %v", clip(name, 100), w.c.name, err)
		}
	}
	args := []string{"submodule", "update", "--quiet", "--force"}
	if w.spec.Depth > 0 {
		args = append(args, "--depth="+strconv.Itoa(w.spec.Depth))
	}
	if _, err := g.run(ctx, args...); err != nil {
		return err
	}
	if w.spec.Submodules != "recursive" {
		return nil
	}
	out, err = g.run(ctx, "ls-files", "-z", "--stage")
	if err != nil {
		return err
	}
	for entry := range strings.SplitSeq(string(out), "\x00") {
		meta, name, ok := strings.Cut(entry, "\t")
		if !ok || !strings.HasPrefix(meta, "160000 ") {
			continue
		}
		if err := w.submodules(ctx, filepath.Join(dir, filepath.FromSlash(name)), level+1); err != nil {
			return err
		}
	}
	return nil
}

// sharers names those who read the same submodules: the trusted runs of a repository or the others, with their jobs' own
// tokens, of which each reads the same; or who has the same other token.
func (p *CheckoutSpec) sharers(ctx context.Context) (string, error) {
	token := p.FetchToken
	if p.For.Token != nil {
		own, err := p.For.Token(ctx)
		if err != nil {
			return "", err
		}
		if own == token {
			token = ""
		}
	}
	return shortHash(fmt.Sprintf("%q %v %q", strings.ToLower(p.For.Repo), p.For.Trusted, token)), nil
}

// forSubmodules prepares a git that fetches the submodules of a checkout, with the tokens that its run may use.
func (c *clone) forSubmodules(ctx context.Context, spec CheckoutSpec) (git, error) {
	base := c.s.c.BaseURL + "/"
	if c.token != nil {
		return c.authorisedFor(ctx, base)
	}
	own, err := c.ownToken(ctx)
	if err != nil {
		return git{}, err
	}
	// git takes the header of the longest address that fits, and has to be told of that one first.
	g := gitFor(base)
	for _, below := range spec.For.paths() {
		g.conf = append(g.conf, tokenConf(base+below, own)...)
	}
	g.conf = append(g.conf, tokenConf(base, spec.FetchToken)...)
	return g, nil
}

// sameServer refuses an address that is not below the base URL: it would see the token, or be in our network.
func (s *Source) sameServer(addr string) error {
	if u, err := url.Parse(addr); err == nil && strings.HasPrefix(addr, s.c.BaseURL+"/") && !strings.Contains(u.Path+"/", "/../") { // however it is written
		return checkRemote(addr)
	}
	return fmt.Errorf("%q is not on %s; only submodules from the same server are fetched", clip(addr, 200), s.c.BaseURL)
}

// quoteConfig quotes a value, or the name of a subsection, for a git configuration file.
func quoteConfig(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(s) + `"`
}
