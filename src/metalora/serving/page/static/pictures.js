// Pictures: read from files and folders, and made small enough to send.

const LARGEST = 512; // pixels; networks see at most this much
const SENT_AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp", "image/gif"];
const MOST_BYTES = 300_000; // of a picture that is sent as it is
const QUALITY = 0.9;

/** Return a picture as a JPEG of at most 512 pixels, or the file itself if it is small. */
export async function shrink(file) {
  const bitmap = await createImageBitmap(file); // turned as its EXIF data say
  const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MOST_BYTES && SENT_AS_THEY_ARE.includes(file.type)) return file;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // below transparent pixels, as the library does it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}

/** Return the base64 text of a file's bytes. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the files of a drop or a paste as [file, path] pairs, with those in folders. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry());
  if (entries.some((entry) => entry === null)) return chosenFiles(transfer.files); // pasted from no folder
  return (await Promise.all(entries.map(filesBelow))).flat();
}

/** Return the files of an `<input type="file">` as [file, path] pairs. */
export const chosenFiles = (files) => [...files].map((file) => [file, file.webkitRelativePath || file.name]);

async function filesBelow(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [[file, entry.fullPath.slice(1)]];
  }
  const found = [];
  const reader = entry.createReader();
  for (;;) {
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at once
    if (part.length === 0) return found;
    for (const child of part) found.push(...(await filesBelow(child)));
  }
}

/** Return the group that a path says: the folder of a file that lies in a folder of the chosen one; or null. */
export function groupOfPath(path) {
  const parts = path.split("/");
  return parts.length >= 3 ? parts.at(-2) : null;
}

/** Whether a file looks like a picture; folders have other files too. */
export const isPicture = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif)$/i.test(file.name);
