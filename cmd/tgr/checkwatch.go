package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// checkPause is how long the files must be quiet before they are checked again: editors write in several steps.
const checkPause = 100 * time.Millisecond

// checkWatch checks the files, and again whenever one of them changes, until ctx ends.
func checkWatch(ctx context.Context, out io.Writer, paths []string, write func(io.Writer, []checkedFile) error) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return ours(err)
	}
	defer watcher.Close()
	if err := watchFolders(watcher, paths); err != nil {
		return usageError{err}
	}
	again := func() error {
		err := checkOnce(out, paths, write)
		var failed exitError
		if errors.As(err, &failed) && failed.err == nil {
			return nil // told already
		}
		return err
	}
	if err := again(); err != nil {
		return err
	}
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-watcher.Events:
			if info, err := os.Stat(e.Name); err == nil && info.IsDir() && e.Has(fsnotify.Create) {
				if err := watchFolders(watcher, []string{e.Name}); err != nil {
					return ours(err)
				}
			}
			if ext := filepath.Ext(e.Name); ext == ".yml" || ext == ".yaml" {
				quiet.Reset(checkPause)
			}
		case err := <-watcher.Errors:
			return ours(err)
		case <-quiet.C:
			// A file may be gone for a moment while an editor replaces it; that is no reason to stop.
			if err := again(); err != nil {
				if _, err := io.WriteString(out, "tgr: "+err.Error()+"\n"); err != nil {
					return ours(err)
				}
			}
		}
	}
}

// watchFolders watches the folders of files, and folders with all below them. Watching a file itself would lose it when
// an editor replaces it.
func watchFolders(watcher *fsnotify.Watcher, paths []string) error {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			if err := watcher.Add(filepath.Dir(path)); err != nil {
				return err
			}
			continue
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if d.Name() == ".git" || d.Name() == "node_modules" {
				return filepath.SkipDir
			}
			return watcher.Add(p)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
