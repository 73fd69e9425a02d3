package githubtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Repo is a repository of the server: a real one, in Dir.
type Repo struct {
	ID            int64
	FullName      string // owner/name
	DefaultBranch string // main
	Dir           string // the bare repository
	URL           string // for git: http://127.0.0.1:…/owner/name.git

	s       *Server
	mu      sync.Mutex // held while the repository is written
	private atomic.Bool
}

// SetPrivate makes git ask for the token, or not.
func (r *Repo) SetPrivate(yes bool) { r.private.Store(yes) }

// Pull is a pull request. Its refs refs/pull/N/head and refs/pull/N/merge are in the base repository.
type Pull struct {
	Repo        *Repo
	Head        *Repo  // where the head branch is: Repo, or a fork
	Association string // author_association; "": CONTRIBUTOR
	Number      int
	Title       string
	HeadRef     string
	BaseRef     string
	HeadSHA     string
	BaseSHA     string
	MergeSHA    string // "" where the branches conflict
	Author      string
}

// Zero is the SHA that stands for no commit.
const Zero = "0000000000000000000000000000000000000000"

func gitEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com"}
}

// CreateRepo makes an empty repository. full is owner/name; it fails if there is one already.
func (s *Server) CreateRepo(full string) (*Repo, error) {
	owner, name, ok := strings.Cut(full, "/")
	if !ok || owner == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("%q is not owner/name", full)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.repos[full] != nil {
		return nil, fmt.Errorf("%s exists", full)
	}
	s.nextID++
	r := &Repo{ID: s.nextID, FullName: full, DefaultBranch: "main", Dir: filepath.Join(s.c.Dir, owner, name+".git"), URL: s.URL + "/" + full + ".git", s: s}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := r.Git("init", "--quiet", "--bare", "--initial-branch=main", "--template="); err != nil {
		return nil, err
	}
	// As GitHub does: any commit can be asked for by its SHA.
	for _, key := range []string{"uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter", "http.receivepack"} {
		if _, err := r.Git("config", key, "true"); err != nil {
			return nil, err
		}
	}
	s.repos[full] = r
	return r, nil
}

// Fork copies a repository with its branches, as another user's fork.
func (s *Server) Fork(of *Repo, full string) (*Repo, error) {
	r, err := s.CreateRepo(full)
	if err != nil {
		return nil, err
	}
	_, err = r.Git("fetch", "--quiet", of.Dir, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
	return r, err
}

// Repo returns a repository by its full name, or nil.
func (s *Server) Repo(full string) *Repo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.repos[full]
}

// Git calls git on the repository and returns what it printed, without space around it.
func (r *Repo) Git(args ...string) (string, error) { return r.git(nil, args...) }

func (r *Repo) git(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"--git-dir=" + r.Dir}, args...)...)
	cmd.Env = gitEnv()
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// Entry is a change of one path in a commit.
type Entry struct {
	Path   string
	Data   string // the content, or where a symbolic link points
	Mode   string // "": 100644; 100755, 120000 (symbolic link), 160000 (submodule: Data is its commit)
	Delete bool
}

// Commit puts a commit with these files (path to content) on top of a branch, which is made if it is new: on top of
// the default branch, if there is one. Files that are not named stay as they were. It returns the commit.
func (r *Repo) Commit(branch, message string, files map[string]string) (string, error) {
	var entries []Entry
	for path, data := range files {
		entries = append(entries, Entry{Path: path, Data: data})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return r.CommitEntries(branch, message, entries...)
}

// CommitEntries is Commit for changes that are more than regular files.
func (r *Repo) CommitEntries(branch, message string, entries ...Entry) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref := "refs/heads/" + branch
	parent, err := r.Git("rev-parse", "--verify", "--quiet", ref)
	if err != nil {
		parent, _ = r.Git("rev-parse", "--verify", "--quiet", "refs/heads/"+r.DefaultBranch)
	}
	var in bytes.Buffer
	now := r.s.c.Now().Unix()
	fmt.Fprintf(&in, "commit %s\ncommitter Ada <ada@example.com> %d +0000\ndata %d\n%s\n", ref, now, len(message), message)
	if parent != "" {
		fmt.Fprintf(&in, "from %s\n", parent)
	}
	for _, e := range entries {
		path := strconv.Quote(e.Path)
		switch {
		case e.Delete:
			fmt.Fprintf(&in, "D %s\n", path)
		case e.Mode == "160000":
			fmt.Fprintf(&in, "M 160000 %s %s\n", e.Data, path)
		default:
			mode := e.Mode
			if mode == "" {
				mode = "100644"
			}
			fmt.Fprintf(&in, "M %s inline %s\ndata %d\n%s\n", mode, path, len(e.Data), e.Data)
		}
	}
	in.WriteString("done\n")
	if _, err := r.git(in.Bytes(), "fast-import", "--quiet", "--done", "--force"); err != nil {
		return "", err
	}
	return r.Git("rev-parse", ref)
}

// Branch makes a branch, or moves it.
func (r *Repo) Branch(name, sha string) error {
	_, err := r.Git("update-ref", "refs/heads/"+name, sha)
	return err
}

// Tag makes an annotated tag, or a light one if message is empty.
func (r *Repo) Tag(name, sha, message string) error {
	args := []string{"tag", name, sha}
	if message != "" {
		args = []string{"tag", "-a", "-m", message, name, sha}
	}
	_, err := r.Git(args...)
	return err
}

// DeleteRef deletes a branch or a tag by its full name.
func (r *Repo) DeleteRef(ref string) error {
	_, err := r.Git("update-ref", "-d", ref)
	return err
}

// SHA returns the commit of a revision, "" if there is none.
func (r *Repo) SHA(rev string) string {
	sha, err := r.Git("rev-parse", "--verify", "--quiet", rev+"^{commit}")
	if err != nil {
		return ""
	}
	return sha
}

// OpenPull opens a pull request from a branch of head (nil: of r itself) to a branch of r.
func (r *Repo) OpenPull(head *Repo, headRef, baseRef string) (*Pull, error) {
	if head == nil {
		head = r
	}
	owner, _, _ := strings.Cut(head.FullName, "/")
	p := &Pull{Repo: r, Head: head, HeadRef: headRef, BaseRef: baseRef, Title: "Change " + headRef, Author: owner}
	r.s.mu.Lock()
	p.Number = len(r.s.record.pulls[r.FullName]) + 1
	r.s.record.pulls[r.FullName] = append(r.s.record.pulls[r.FullName], p)
	r.s.mu.Unlock()
	return p, p.Sync()
}

// Sync takes over the present tips of both branches and makes the merge anew, as GitHub does after a push.
func (p *Pull) Sync() error {
	p.Repo.mu.Lock()
	defer p.Repo.mu.Unlock()
	ref := fmt.Sprintf("refs/pull/%d/", p.Number)
	if _, err := p.Repo.Git("fetch", "--quiet", p.Head.Dir, "+refs/heads/"+p.HeadRef+":"+ref+"head"); err != nil {
		return err
	}
	p.HeadSHA, p.BaseSHA = p.Repo.SHA(ref+"head"), p.Repo.SHA("refs/heads/"+p.BaseRef)
	if p.HeadSHA == "" || p.BaseSHA == "" {
		return errors.New("a pull request needs both its branches")
	}
	p.MergeSHA = ""
	tree, err := p.Repo.Git("merge-tree", "--write-tree", p.BaseSHA, p.HeadSHA)
	if err != nil {
		p.Repo.Git("update-ref", "-d", ref+"merge") // a conflict: there is no merge
		return nil
	}
	message := "Merge " + p.HeadSHA + " into " + p.BaseSHA
	sha, err := p.Repo.Git("commit-tree", "-p", p.BaseSHA, "-p", p.HeadSHA, "-m", message, tree)
	if err != nil {
		return err
	}
	p.MergeSHA = sha
	_, err = p.Repo.Git("update-ref", ref+"merge", sha)
	return err
}

// Merge puts the merge on the base branch.
func (p *Pull) Merge() error {
	if p.MergeSHA == "" {
		return errors.New("the branches conflict")
	}
	return p.Repo.Branch(p.BaseRef, p.MergeSHA)
}
