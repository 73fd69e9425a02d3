package github

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/terraphim/tgr"
)

// maxAction bounds an action's tree, in bytes of tar.
const maxAction = 1 << 30

// Action returns the commit of a remote action and its repository's tree as a tar stream: files from the root, and
// no .git. name is owner/repo, without the path of the action in it; ref is a branch, a tag or a full SHA, which
// costs no network once it was used by somebody who may read what r may. The caller closes the stream.
func (s *Source) Action(ctx context.Context, r Reader, name, ref string) (sha string, tar io.ReadCloser, err error) {
	c, err := s.clone(tgr.Repo{FullName: name})
	if err != nil {
		return "", nil, err
	}
	full, sha, err := c.use(ctx, r, ref)
	if err == nil {
		c.remember(ref, sha)
	} else if sha = c.remembered(ref, err); sha == "" || !c.mayHave(sha) {
		return "", nil, err
	} else {
		s.c.Log.Warn("an action is used as it was last time: its server does not answer", "action", name, "ref", ref, "commit", sha, "error", err)
	}
	what := fmt.Sprintf("action %s@%s (commit %s)", name, ref, sha)
	file := filepath.Join(s.c.Dir, "checkouts", "action-"+shortHash(c.dir+"@"+sha)+".tar")
	t := &template{tar: file}
	if !t.exists() {
		if err := c.archive(ctx, sha, full, file); err != nil {
			return "", nil, c.fail("action", what, err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return "", nil, c.fail("action", what, err)
	}
	return sha, f, nil
}

// remember notes what a ref of an action has pointed to.
func (c *clone) remember(ref, sha string) {
	if ref == sha {
		return
	}
	file := c.refFile(ref)
	if have, err := os.ReadFile(file); err == nil && string(have) == sha {
		return
	}
	if err := writeNote(file, sha); err != nil { // it is only needed when the server does not answer
		c.s.c.Log.Warn("remember the commit of an action", "ref", ref, "error", err)
	}
}

// writeNote makes a file of a few words, and the folder for it.
func writeNote(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return writeWhole(file, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// remembered is what a ref has pointed to when it was last asked for, if its server does not answer now; "" otherwise. A
// server that answers that there is no such ref, or that it may not be read, has answered.
func (c *clone) remembered(ref string, err error) string {
	if tgr.CodeOf(err) != tgr.Unavailable {
		return ""
	}
	sha, err := os.ReadFile(c.refFile(ref))
	if err != nil || !shaPattern().Match(sha) {
		return ""
	}
	return string(sha)
}

func (c *clone) refFile(ref string) string {
	return filepath.Join(c.s.c.Dir, "refs", shortHash(c.dir+"@"+ref))
}

// archive fetches a commit and writes its tree to a tar file.
func (c *clone) archive(ctx context.Context, sha, ref, file string) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.need(ctx, sha, ref); err != nil {
		return err
	}
	// The tree, not the commit: the archive of a commit begins with a header that is no file.
	tree, err := c.treeOf(ctx, sha)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	err = writeWhole(file, func(w io.Writer) error {
		return git{dir: c.dir, conf: [][2]string{{"tar.umask", "0022"}}}.stream(ctx, &capped{w: w, left: maxAction},
			"archive", "--format=tar", tree)
	})
	if err != nil {
		return err
	}
	return c.s.evict(file)
}

// stream calls git and sends what it prints to w.
func (g git) stream(ctx context.Context, w io.Writer, args ...string) error {
	cmd, errs := g.command(ctx, args...)
	out := &writeError{w: w}
	cmd.Stdout = out
	if err := cmd.Run(); out.err != nil {
		return out.err
	} else if err != nil {
		return g.failure(ctx, args[0], errs, err)
	}
	return nil
}

// writeError remembers why writing failed: the process that is cut off reports only a broken pipe.
type writeError struct {
	w   io.Writer
	err error
}

// Write passes on.
func (e *writeError) Write(p []byte) (int, error) {
	n, err := e.w.Write(p)
	if err != nil && e.err == nil {
		e.err = err
	}
	return n, err
}

// capped fails after so many bytes.
type capped struct {
	w    io.Writer
	left int64
}

// Write passes on what is within the bound.
func (c *capped) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, fmt.Errorf("%w: the tree has more than %d bytes", errTooMuch, int64(maxAction))
	}
	return c.w.Write(p)
}
