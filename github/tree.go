package github

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
)

// File is a file of a commit's tree.
type File struct {
	Path string // from the root of the repository
	Size int64  // bytes
	Mode uint32 // git's: 0100644, 0100755; 0120000 for a symbolic link
	Data []byte
	Err  error // why Data is nil: too large, or a symbolic link, which is not followed
}

// maxFiles bounds a directory that is read as a whole.
const maxFiles = 1000

// Files returns the files directly in a directory of a fetched commit's tree, sorted by path; none, if there is no
// such directory. A file that is too large, or not a file, is among them with its Err.
func (s *Source) Files(ctx context.Context, repo tgr.Repo, sha, dir string) ([]File, error) {
	c, err := s.clone(repo)
	if err != nil {
		return nil, err
	}
	dir = path.Clean(dir)
	where := dir + " at " + sha
	files, ids, err := c.list(ctx, sha, dir+"/")
	if err != nil {
		return nil, c.fail("files", where, err)
	}
	if err := c.readAll(ctx, files, ids); err != nil {
		return nil, c.fail("files", where, err)
	}
	return files, nil
}

// ReadFile returns one file of a fetched commit's tree. Symbolic links are not followed.
func (s *Source) ReadFile(ctx context.Context, repo tgr.Repo, sha, name string) ([]byte, error) {
	c, err := s.clone(repo)
	if err != nil {
		return nil, err
	}
	name = path.Clean(name)
	files, ids, err := c.list(ctx, sha, name)
	if err == nil && len(files) == 0 {
		return nil, tgr.Errorf("source.read", tgr.NotFound, "%s has no file %s at %s", c.name, name, sha)
	}
	if err == nil {
		err = c.readAll(ctx, files, ids)
	}
	if err == nil {
		err = files[0].Err
	}
	if err != nil {
		return nil, c.fail("read", name+" at "+sha, err)
	}
	return files[0].Data, nil
}

// Tree returns the name of the tree of a commit that Fetch has returned. Commits with the same files have the same.
func (s *Source) Tree(ctx context.Context, repo tgr.Repo, sha string) (string, error) {
	c, err := s.clone(repo)
	if err != nil {
		return "", err
	}
	if !shaPattern().MatchString(sha) {
		return "", tgr.Errorf("source.tree", tgr.Invalid, "%q is not a SHA", clip(sha, 100))
	}
	tree, err := c.treeOf(ctx, sha)
	if err != nil {
		return "", c.fail("read", "the tree of "+sha, err)
	}
	return tree, nil
}

func (c *clone) treeOf(ctx context.Context, sha string) (string, error) {
	out, err := c.git(ctx, "rev-parse", "--verify", "--end-of-options", sha+"^{tree}")
	return strings.TrimSpace(string(out)), err
}

// Message returns the message of a commit that Fetch has returned.
func (s *Source) Message(ctx context.Context, repo tgr.Repo, sha string) (string, error) {
	c, err := s.clone(repo)
	if err != nil {
		return "", err
	}
	if !shaPattern().MatchString(sha) {
		return "", tgr.Errorf("source.message", tgr.Invalid, "%q is not a SHA", clip(sha, 100))
	}
	out, err := c.git(ctx, "log", "-1", "--format=%B", "--end-of-options", sha)
	if err != nil {
		return "", c.fail("read", "the message of "+sha, err)
	}
	return string(out), nil
}

// RemoteFile returns one file of another repository at a branch, a tag or a SHA, as Action does: with the full name of
// the ref, and the commit that it is now.
func (s *Source) RemoteFile(ctx context.Context, r Reader, name, ref, file string) (full, sha string, data []byte, err error) {
	repo := tgr.Repo{FullName: name}
	c, err := s.clone(repo)
	if err != nil {
		return "", "", nil, err
	}
	if full, sha, err = c.use(ctx, r, ref); err != nil {
		return "", "", nil, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", "", nil, c.fail("read", file, err)
	}
	err = c.need(ctx, sha, full)
	unlock()
	if err != nil {
		return "", "", nil, c.fail("read", file+" at "+ref, err)
	}
	if full == "" {
		full = sha
	}
	data, err = s.ReadFile(ctx, repo, sha, file)
	return full, sha, data, err
}

// list returns what the tree has at a path (a directory's entries, if it ends in a slash) and the objects' names.
func (c *clone) list(ctx context.Context, sha, name string) (files []File, ids []string, err error) {
	if !shaPattern().MatchString(sha) {
		return nil, nil, tgr.Errorf("source.list", tgr.Invalid, "%q is not a SHA", clip(sha, 100))
	}
	if name == "./" {
		name = ""
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) {
		return nil, nil, tgr.Errorf("source.list", tgr.Invalid, "%q is not a path in a repository", clip(name, 200))
	}
	if !c.has(ctx, sha) {
		return nil, nil, tgr.Errorf("source.list", tgr.NotFound, "commit %s of %s has not been fetched", sha, c.name)
	}
	args := []string{"--literal-pathspecs", "ls-tree", "-z", "--long", "--full-tree", sha}
	if name != "" {
		args = append(args, "--", name)
	}
	out, err := c.git(ctx, args...)
	if err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(string(out), "\x00") {
		meta, name, ok := strings.Cut(entry, "\t")
		fields := strings.Fields(meta) // mode, type, object, size
		if !ok || len(fields) != 4 || fields[1] != "blob" {
			continue
		}
		mode, err := strconv.ParseUint(fields[0], 8, 32)
		if err != nil {
			continue
		}
		size, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil {
			continue
		}
		if len(files) == maxFiles {
			return nil, nil, tgr.Errorf("source.list", tgr.Limit, "more than %d files in one directory of %s at %s", maxFiles, c.name, sha)
		}
		files, ids = append(files, File{Path: name, Size: size, Mode: uint32(mode)}), append(ids, fields[2])
	}
	return files, ids, nil
}

const modeSymlink = 0o120000

// readAll reads the objects of the files with one process.
func (c *clone) readAll(ctx context.Context, files []File, ids []string) error {
	var ask bytes.Buffer
	var read []int
	total := int64(0)
	for i := range files {
		f := &files[i]
		total += f.Size
		switch {
		case f.Mode&0o170000 == modeSymlink:
			f.Err = tgr.Errorf("source.read", tgr.Workflow, "%s is a symbolic link, which is not followed", f.Path)
		case f.Size > c.s.c.MaxFile:
			f.Err = tgr.Errorf("source.read", tgr.Workflow, "%s has %d bytes; at most %d are read", f.Path, f.Size, c.s.c.MaxFile)
		case total > gitOutput/2:
			f.Err = tgr.Errorf("source.read", tgr.Workflow, "%s: the files of its directory are too large together", f.Path)
		default:
			ask.WriteString(ids[i] + "\n")
			read = append(read, i)
		}
	}
	if len(read) == 0 {
		return nil
	}
	out, err := git{dir: c.dir, stdin: &ask}.run(ctx, "cat-file", "--batch")
	if err != nil {
		return err
	}
	r := bufio.NewReader(bytes.NewReader(out))
	for _, i := range read {
		head, err := r.ReadString('\n')
		if want := fmt.Sprintf("%s blob %d\n", ids[i], files[i].Size); err != nil || head != want {
			return fmt.Errorf("object %s of %s: git answered %q", ids[i], files[i].Path, clip(head, 100))
		}
		files[i].Data = make([]byte, files[i].Size)
		if _, err := io.ReadFull(r, files[i].Data); err != nil {
			return err
		}
		if _, err := r.Discard(1); err != nil {
			return err
		}
	}
	return nil
}
