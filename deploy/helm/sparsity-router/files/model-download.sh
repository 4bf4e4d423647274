# Runs its arguments, which download SOURCE into TARGET, once: what is there whole already is left as it is, and what an
# attempt before this one brought is gone on with. Ends with 3 where the files are not what they should be.
complete="$TARGET/.complete"
if [ -e "$complete" ]; then
  echo "model: $TARGET is whole already"
  exit 0
fi
mkdir -p "$TARGET"
echo "model: $SOURCE into $TARGET"
"$@"
wrong() {
  echo "model: $1; $TARGET is emptied" >&2
  find "$TARGET" -mindepth 1 -delete
  exit 3
}
[ -e "$TARGET/config.json" ] || wrong "there is no config.json"
if [ -n "${VERIFY:-}" ]; then
  echo "model: comparing checksums with the source's"
  $VERIFY || wrong "checksums are not the source's"
fi
if [ -n "${SHA256:-}" ]; then
  (cd "$TARGET" && printf '%s\n' "$SHA256" | sha256sum -c) || wrong "checksums are not those of model.sha256"
fi
echo "$SOURCE" > "$complete"
echo "model: whole, $(du -sh "$TARGET" | cut -f 1)"
