package main

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
)

// openDataDir makes the data folder, into which nobody else may look: it has the code and the logs of repositories, and keys.
// One that is there and that others may look into is closed to them, unless it holds files and none that say that it is
// ours: a folder of the system could have been named by mistake.
func openDataDir(c *config, log *slog.Logger) error {
	dir := c.get("data-dir")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm()
	if mode&0o077 == 0 {
		return nil
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	ours := slices.ContainsFunc(files, func(f fs.DirEntry) bool { return f.Name() == "tgr.db" || f.Name() == "vmd.key" })
	if len(files) > 0 && !ours {
		return usagef("data-dir (from %s) is %s, which others may look into (mode %04o) and which holds files that are not this server's: name a folder of its own, or chmod 700 it",
			c.origin["data-dir"], dir, mode)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("the data folder %s may be looked into by others (mode %04o), and cannot be closed to them: %w", dir, mode, err)
	}
	log.Warn("others could look into the data folder: it is closed to them now", "folder", dir, "mode", fmt.Sprintf("%04o", mode))
	return nil
}
