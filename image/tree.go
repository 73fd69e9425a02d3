package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Limits of a root filesystem: what is beyond them is no image that somebody wants to boot.
const (
	maxRootFiles  = 2_000_000
	maxRootBytes  = 64 << 30
	maxRootDepth  = 128
	maxRootPath   = 4095 // bytes of a path, as the kernel has it
	maxRootName   = 255  // bytes of one part of it
	maxRootLinks  = 40   // symbolic links followed on one path, as the kernel does
	maxRootXattrs = 4096 // bytes of a file's extended attributes: a block of the file system
)

// The marks by which a layer removes what the layers below it have.
// https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
	otherWhiteout  = ".wh..wh." // of aufs, without meaning here
)

// tree is a root filesystem while it is put together of layers. It lives in memory, but for the contents of files, so that
// nothing a layer says reaches the host's file system: a link leads nowhere but within the tree.
type tree struct {
	root    *inode
	layer   int // that is being applied; counts from 1
	files   int
	bytes   int64
	latest  time.Time // no file is newer; zero: as the layers say
	spool   *os.File  // the contents of all files, one after the other
	dropped int       // device nodes that were left out
	limits  treeLimits
}

// treeLimits bound a tree.
type treeLimits struct {
	files int
	bytes int64
}

// inode is a file or folder. A file with several names is in several folders.
type inode struct {
	kind     byte // as in tar.Header.Typeflag: TypeReg, TypeDir, TypeSymlink or TypeFifo
	mode     int64
	uid, gid int
	mtime    time.Time
	target   string             // of a symbolic link
	xattrs   map[string]string  // by tar's name of the record
	at, size int64              // of the contents, in the spool
	children map[string]*dirent // of a folder
	written  string             // its first name, once it was written
}

// dirent is a name in a folder.
type dirent struct {
	*inode
	layer int // the last that had it: a mark removes only what lower layers have
}

// newTree makes a tree with an empty root. The caller removes the spool, a temporary file in dir, by close.
func newTree(dir string) (*tree, error) {
	spool, err := os.CreateTemp(dir, "contents-*"+tmpSuffix)
	if err != nil {
		return nil, err
	}
	return &tree{root: newDir(), spool: spool, limits: treeLimits{maxRootFiles, maxRootBytes}}, nil
}

func newDir() *inode {
	return &inode{kind: tar.TypeDir, mode: 0o755, mtime: time.Unix(0, 0), children: map[string]*dirent{}}
}

func (t *tree) close() error {
	return errors.Join(t.spool.Close(), os.Remove(t.spool.Name()))
}

// apply puts a layer, a tar stream, over what is there.
func (t *tree) apply(layer io.Reader) error {
	t.layer++
	r := tar.NewReader(layer)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("layer %d: %w", t.layer, err)
		}
		if err := t.entry(h, r); err != nil {
			return fmt.Errorf("layer %d: %.200q: %w", t.layer, h.Name, err)
		}
	}
}

// entry applies one entry.
func (t *tree) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 { // the root itself
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is not a folder")
		}
		return t.describe(t.root, h)
	}
	dir, base := parts[:len(parts)-1], parts[len(parts)-1]
	if strings.HasPrefix(base, whiteout) {
		return t.whiteOut(dir, base)
	}
	parent, err := t.dir(dir, true)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return t.link(parent, base, h.Linkname)
	}
	return t.put(parent, base, h, content)
}

// put makes a file or folder of its own.
func (t *tree) put(parent *inode, base string, h *tar.Header, content io.Reader) error {
	n := &inode{kind: h.Typeflag}
	switch h.Typeflag {
	case tar.TypeDir:
		if old := parent.children[base]; old != nil && old.kind == tar.TypeDir {
			old.layer = t.layer
			return t.describe(old.inode, h)
		}
		n.children = map[string]*dirent{}
	case tar.TypeReg, tar.TypeGNUSparse:
		n.kind = tar.TypeReg
		if err := t.keep(n, h.Size, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxRootPath || strings.ContainsRune(h.Linkname, 0) {
			return errors.New("the link's target is empty or too long")
		}
		n.target = h.Linkname
	case tar.TypeFifo:
	case tar.TypeChar, tar.TypeBlock:
		// A machine's /dev is the kernel's. A node here would be a way around its permissions, or what the overlay
		// of the machine takes for a deleted file.
		t.dropped++
		delete(parent.children, base)
		return nil
	default:
		return fmt.Errorf("an entry of type %q", h.Typeflag)
	}
	if err := t.describe(n, h); err != nil {
		return err
	}
	return t.add(parent, base, n)
}

// add gives a file a name.
func (t *tree) add(parent *inode, base string, n *inode) error {
	if t.files++; t.files > t.limits.files {
		return fmt.Errorf("there are more than %d files", t.limits.files)
	}
	parent.children[base] = &dirent{n, t.layer}
	return nil
}

// link gives a file a second name.
func (t *tree) link(parent *inode, base, target string) error {
	parts, err := split(target)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", target, err)
	}
	if len(parts) == 0 {
		return errors.New("a link to the root")
	}
	dir, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", target, err)
	}
	n := dir.children[parts[len(parts)-1]]
	if n == nil || n.kind == tar.TypeDir {
		return fmt.Errorf("link to %.200q, which is no file", target)
	}
	return t.add(parent, base, n.inode)
}

// keep copies a file's contents to the spool.
func (t *tree) keep(n *inode, size int64, content io.Reader) error {
	if size < 0 || size > t.limits.bytes-t.bytes {
		return fmt.Errorf("the files are larger than %d bytes", t.limits.bytes)
	}
	n.at, n.size = t.bytes, size
	got, err := io.Copy(t.spool, io.LimitReader(content, size))
	if err == nil && got != size {
		err = io.ErrUnexpectedEOF
	}
	t.bytes += got
	return err
}

// describe takes over who may do what with a file.
func (t *tree) describe(n *inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return fmt.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	n.mode, n.uid, n.gid = h.Mode&0o7777, h.Uid, h.Gid
	n.mtime = h.ModTime.Truncate(time.Second)
	if !t.latest.IsZero() && n.mtime.After(t.latest) {
		n.mtime = t.latest
	}
	if s := n.mtime.Unix(); s < 0 || s >= 1<<33 {
		n.mtime = time.Unix(0, 0)
	}
	n.xattrs = nil
	size := 0
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, "SCHILY.xattr.")
		if !ok || !keptXattr(name) {
			continue
		}
		if size += len(record) + len(value); size > maxRootXattrs {
			return fmt.Errorf("more than %d bytes of extended attributes", maxRootXattrs)
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[record] = value
	}
	return nil
}

// keptXattr reports whether a machine may be given an extended attribute. Those of an overlay would be believed by the
// overlay of the machine.
func keptXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// whiteOut removes what lower layers have.
func (t *tree) whiteOut(dir []string, mark string) error {
	parent, err := t.dir(dir, false)
	if errors.Is(err, errNotThere) {
		return nil
	} else if err != nil {
		return err
	}
	if mark == opaqueWhiteout {
		for child := range parent.children {
			t.dropLower(parent, child)
		}
		return nil
	}
	if strings.HasPrefix(mark, otherWhiteout) {
		return nil
	}
	if hidden := mark[len(whiteout):]; hidden != "" {
		t.dropLower(parent, hidden)
	}
	return nil
}

// dropLower removes a file, and of a folder that this layer has, too, what this layer has not.
func (t *tree) dropLower(parent *inode, base string) {
	n := parent.children[base]
	switch {
	case n == nil:
	case n.layer != t.layer:
		delete(parent.children, base)
	case n.kind == tar.TypeDir:
		for child := range n.children {
			t.dropLower(n.inode, child)
		}
	}
}

var errNotThere = errors.New("there is no such folder")

// dir walks to a folder and follows symbolic links as in a machine whose root this is. With create, what is missing is
// made. Folders that are walked through belong to this layer if it creates something in them.
func (t *tree) dir(parts []string, create bool) (*inode, error) {
	followed := 0
	stack := []*inode{t.root}
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		at := stack[len(stack)-1]
		switch part {
		case ".":
			continue
		case "..": // only of a symbolic link
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		n := at.children[part]
		switch {
		case n == nil && !create:
			return nil, errNotThere
		case n == nil && strings.HasPrefix(part, whiteout):
			return nil, errors.New("a mark is no folder")
		case n == nil:
			if err := t.add(at, part, newDir()); err != nil {
				return nil, err
			}
			n = at.children[part]
		case n.kind == tar.TypeSymlink:
			if followed++; followed > maxRootLinks || len(parts) > maxRootPath {
				return nil, errors.New("too many levels of symbolic links")
			}
			if strings.HasPrefix(n.target, "/") {
				stack = stack[:1]
			}
			parts = append(strings.FieldsFunc(n.target, func(r rune) bool { return r == '/' }), parts...)
			continue
		case n.kind != tar.TypeDir:
			return nil, errors.New("its folder is a file")
		}
		if create {
			n.layer = t.layer
		}
		if stack = append(stack, n.inode); len(stack) > maxRootDepth {
			return nil, fmt.Errorf("folders are nested more than %d deep", maxRootDepth)
		}
	}
	return stack[len(stack)-1], nil
}

// split checks the name of an entry and takes it apart.
func split(name string) ([]string, error) {
	if len(name) > maxRootPath {
		return nil, errors.New("the path is too long")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, errors.New("the path leaves the root")
		case len(part) > maxRootName || strings.ContainsRune(part, 0):
			return nil, errors.New("a part of the path is no file name")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxRootDepth {
		return nil, fmt.Errorf("folders are nested more than %d deep", maxRootDepth)
	}
	return parts, nil
}

// write writes the tree as one layer: in the order of names, so that the same tree gives the same bytes.
func (t *tree) write(w io.Writer) error {
	out := tar.NewWriter(w)
	if err := t.writeDir(out, "", t.root); err != nil {
		return err
	}
	return out.Close()
}

func (t *tree) writeDir(w *tar.Writer, prefix string, dir *inode) error {
	for _, base := range slices.Sorted(maps.Keys(dir.children)) {
		n := dir.children[base].inode
		full := prefix + base
		if err := t.writeNode(w, full, n); err != nil {
			return fmt.Errorf("%.200q: %w", full, err)
		}
		if n.kind == tar.TypeDir {
			if err := t.writeDir(w, full+"/", n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tree) writeNode(w *tar.Writer, full string, n *inode) error {
	h := &tar.Header{Typeflag: n.kind, Name: full, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.mtime, PAXRecords: n.xattrs, Format: tar.FormatPAX}
	switch {
	case n.written != "":
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: full, Linkname: n.written, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.mtime, Format: tar.FormatPAX})
	case n.kind == tar.TypeDir:
		h.Name += "/"
	case n.kind == tar.TypeSymlink:
		h.Linkname = n.target
	case n.kind == tar.TypeReg:
		h.Size = n.size
	}
	if n.kind != tar.TypeDir {
		n.written = full
	}
	if err := w.WriteHeader(h); err != nil || n.kind != tar.TypeReg {
		return err
	}
	_, err := io.Copy(w, io.NewSectionReader(t.spool, n.at, n.size))
	return err
}

// read returns the contents of a file of at most limit bytes; ok is false where there is none. It follows links.
func (t *tree) read(file string, limit int64) (text string, ok bool, err error) {
	dir, err := t.dir(strings.Split(path.Dir(file), "/"), false)
	if err != nil {
		if errors.Is(err, errNotThere) {
			err = nil
		}
		return "", false, err
	}
	n := dir.children[path.Base(file)]
	if n == nil || n.kind != tar.TypeReg {
		return "", false, nil
	}
	if n.size > limit {
		return "", false, fmt.Errorf("%s has %d bytes", file, n.size)
	}
	b := make([]byte, n.size)
	_, err = t.spool.ReadAt(b, n.at)
	return string(b), err == nil, err
}

// text puts a file with a text, owned by root, with what is there of its name replaced.
func (t *tree) text(file string, mode int64, text string) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: mode, Size: int64(len(text)), ModTime: t.latest}
	return t.entry(h, bytes.NewReader([]byte(text)))
}

// folder makes sure of a folder; one that is there stays as it is.
func (t *tree) folder(file string, mode int64, owner int) error {
	parts, err := split(file)
	if err != nil {
		return err
	}
	if _, err := t.dir(parts, false); err == nil {
		return nil
	} else if !errors.Is(err, errNotThere) {
		return fmt.Errorf("%s: %w", file, err)
	}
	dir, err := t.dir(parts, true)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	dir.mode, dir.uid, dir.gid = mode, owner, owner
	return nil
}

// remove removes a file or folder, if it is there.
func (t *tree) remove(file string) {
	if dir, err := t.dir(strings.Split(path.Dir(file), "/"), false); err == nil {
		delete(dir.children, path.Base(file))
	}
}
