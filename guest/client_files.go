package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Put unpacks a tar into dir, which is made where it is missing: files, folders, symbolic and hard links, with
// modes and times. Nothing is written outside dir: names that are absolute, contain "..", or lead through a
// symbolic link out of dir fail with ErrRefused, as do devices and pipes. What was unpacked before stays.
func (c *Client) Put(ctx context.Context, dir string, tar io.Reader) error {
	k, err := c.begin(ctx, &request{Op: opPut, Dir: []byte(dir)}, false)
	if err != nil {
		return err
	}
	defer k.end()
	sent := k.copy(tar)
	if sent == nil {
		sent = k.out.send(frame(kEnd, nil))
	}
	var source *sourceError
	if errors.As(sent, &source) {
		return fmt.Errorf("put into %s: reading the tar: %w", dir, source.err)
	}
	// Where sending failed the agent may have said why.
	if _, err := k.reply(); err != nil {
		return fmt.Errorf("put into %s: %w", dir, err)
	}
	if sent != nil {
		return fmt.Errorf("put into %s: %w", dir, sent)
	}
	return nil
}

// Get returns a tar of a file, as one entry of its base name, or of a folder, as entries relative to it. A path
// that does not exist is an error that matches fs.ErrNotExist. A symbolic link is sent as a link, except where
// it is path itself; pipes, sockets and devices are left out, and are in Skipped of the *Tree that the reader is.
//
// The reader ends with an error when ctx ends. The caller closes it, and takes what it reads for hostile.
func (c *Client) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	k, err := c.begin(ctx, &request{Op: opGet, Dir: []byte(path)}, false)
	if err != nil {
		return nil, err
	}
	t := &Tree{k: k, path: path}
	if t.fill(); t.err != nil && t.err != io.EOF {
		k.end()
		return nil, t.err
	}
	return t, nil
}

// Tree reads what Get fetches. It is for one reader.
type Tree struct {
	k       *call
	path    string
	rest    []byte
	skipped []string
	err     error
	once    sync.Once
}

// fill reads the next frame.
func (t *Tree) fill() {
	kind, b, err := t.k.next()
	switch {
	case err != nil:
	case kind == kData:
		t.rest = b
		return
	case kind == kEnd:
		var r reply
		if err = decode(kind, b, &r); err == nil {
			t.skipped, t.err = r.Skipped, io.EOF
			return
		}
	default:
		err = t.k.unexpected(kind)
	}
	t.err = fmt.Errorf("get %s: %w", t.path, err)
}

// Read reads the tar; it returns io.EOF only when the agent has sent all of it.
func (t *Tree) Read(b []byte) (int, error) {
	for len(t.rest) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		t.fill()
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Skipped names what was left out, relative to the path; complete when Read has returned io.EOF.
func (t *Tree) Skipped() []string { return t.skipped }

// Close gives up the rest.
func (t *Tree) Close() error {
	t.once.Do(func() {
		t.k.end()
		t.err, t.rest = io.ErrClosedPipe, nil
	})
	return nil
}
