package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/results"
)

// resultsVerb opens the folder of caches and artifacts for one verb. A server may have it open meanwhile.
func resultsVerb(cmd *cobra.Command, f func(context.Context, *results.Service) error) (err error) {
	c, err := loadConfig(cmd.Flags())
	if err != nil {
		return err
	}
	rc, err := resultsConfig(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	s, err := results.Open(cmd.Context(), rc)
	if err != nil {
		return ours(err)
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = ours(cerr)
		}
	}()
	err = f(cmd.Context(), s)
	if code := tgr.CodeOf(err); code == tgr.NotFound || code == tgr.Invalid {
		return usagef("%s", tgr.MessageOf(err))
	}
	return ours(err)
}

// resultsFlags are the settings that say where caches and artifacts are.
func resultsFlags(cmd *cobra.Command) {
	configFlags(cmd, "data-dir", "results-dir", "s3-url", "s3-region", "s3-access-key")
}

func newCacheCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cache", Short: "List and remove the caches that jobs have saved",
		Long: "List and remove the caches that jobs have saved, in the folder of the server or of tgr run on this host.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newCacheListCmd(), newCacheRmCmd())
	return cmd
}

func newCacheListCmd() *cobra.Command {
	var repo string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List caches, the most recently used first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return resultsVerb(cmd, func(ctx context.Context, s *results.Service) error {
				list, err := s.Caches(ctx, repo)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tREPOSITORY\tREF\tKEY\tSIZE\tUSED")
				for _, c := range list {
					ref := strings.TrimPrefix(c.Ref, "refs/heads/")
					if !c.Trusted {
						ref += " (untrusted)"
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", c.ID, c.Repo, printable(ref), printable(c.Key), bytesText(c.Size), c.Used.Local().Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	resultsFlags(cmd)
	cmd.Flags().StringVarP(&repo, "repo", "R", "", "only this repository, owner/name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCacheRmCmd() *cobra.Command {
	var all bool
	var repo string
	cmd := &cobra.Command{
		Use: "rm [id...]", Short: "Remove caches",
		Example: "  tgr cache rm 17 18\n  tgr cache rm --all --repo octo/app",
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := numbers(args)
			if err != nil {
				return err
			}
			if all == (len(ids) > 0) {
				return usagef("name the caches to remove, or use --all")
			}
			return resultsVerb(cmd, func(ctx context.Context, s *results.Service) error {
				if all {
					list, err := s.Caches(ctx, repo)
					if err != nil {
						return err
					}
					for _, c := range list {
						ids = append(ids, c.ID)
					}
				}
				if err := s.RemoveCaches(ctx, ids...); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "removed %d\n", len(ids))
				return nil
			})
		},
	}
	resultsFlags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "all caches, of --repo where it is given")
	cmd.Flags().StringVarP(&repo, "repo", "R", "", "with --all: only this repository, owner/name")
	return cmd
}

func newArtifactCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "artifact", Short: "List and download the artifacts of runs",
		Long: "List and download the artifacts of runs, from the folder of the server or of tgr run on this host.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newArtifactListCmd(), newArtifactDownloadCmd())
	return cmd
}

func newArtifactListCmd() *cobra.Command {
	var run int64
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List artifacts, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return resultsVerb(cmd, func(ctx context.Context, s *results.Service) error {
				list, err := s.Artifacts(ctx, tgr.RunID(run))
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tREPOSITORY\tRUN\tNAME\tSIZE\tEXPIRES")
				for _, a := range list {
					fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", a.ID, a.Repo, a.Run, printable(a.Name), bytesText(a.Size), a.Expires.Local().Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	resultsFlags(cmd)
	cmd.Flags().Int64Var(&run, "run", 0, "only of this run")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newArtifactDownloadCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "download id...", Short: "Download artifacts as they were uploaded: most are zip files",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := numbers(args)
			if err != nil {
				return err
			}
			return resultsVerb(cmd, func(ctx context.Context, s *results.Service) error {
				for _, id := range ids {
					path, err := downloadArtifact(ctx, s, id, dir)
					if err != nil {
						return err
					}
					fmt.Fprintln(cmd.OutOrStdout(), printable(path))
				}
				return nil
			})
		},
	}
	resultsFlags(cmd)
	cmd.Flags().StringVarP(&dir, "dir", "D", ".", "folder to put them into")
	return cmd
}

// downloadArtifact writes an artifact into a folder, and never over a file. Its name is one element of a path: the
// service has seen to it.
func downloadArtifact(ctx context.Context, s *results.Service, id int64, dir string) (path string, err error) {
	a, err := s.Artifact(ctx, id)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, a.File())
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return "", usageError{err}
	}
	err = s.CopyArtifact(ctx, f, id)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
	}
	return path, err
}

func numbers(args []string) ([]int64, error) {
	var ids []int64
	for _, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id <= 0 {
			return nil, usagef("%q is no id: the list shows them", arg)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
